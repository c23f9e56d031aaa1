"""Resolving: from a registry, a hub and apt indexes on loopback into the lock."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rigup.catalog.loader import Catalog
from rigup.config.settings import Settings
from rigup.lock import lockfile as locks
from rigup.lock.http import Unresolved, Web
from rigup.lock.hub import published_file
from rigup.lock.lockfile import KeyLock, Lock
from rigup.lock.openpgp import fingerprints
from rigup.lock.packages import driver_install
from rigup.lock.registry import image_lock, registry_of
from rigup.lock.resolve import ResolveError, Want, ensure, resolve
from rigup.plan.host import plan_host
from tests.unit.loopback import Answer, Asked, Site, serving
from tests.unit.sample import CATALOGUE, REPO, REVISION, TAG
from tests.unit.small_world import CREATED, image_pages, packages, public_key, world

NAME, _, VERSION = TAG.rpartition(":")
CUDA_INDEX = "/cuda/debian13/x86_64/Packages.gz"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


def want(site: Site, **settings: object) -> Want:
    return Want(Settings.from_data({**world(site), **settings}), "debian13")


def unresolved(site: Site, wanted: Want, catalog: Catalog = CATALOGUE) -> str:
    with pytest.raises(ResolveError) as caught:
        resolve([wanted], catalog, Lock())
    return str(caught.value).replace(site.url, "")


def test_everything_a_host_wants_is_resolved_and_the_plan_can_be_made(site: Site, tmp_path: Path) -> None:
    wanted = want(site)
    found = resolve([wanted], CATALOGUE, Lock())
    image = found.images[TAG]
    assert image.digest == image_pages(site, NAME, VERSION)
    assert image.created == datetime.fromisoformat(CREATED).replace(microsecond=0)
    assert image.cuda == "13.0.1"
    assert image.bytes > 1234
    checkpoint = found.checkpoints[f"{REPO}@main"]
    assert (checkpoint.revision, checkpoint.bytes, checkpoint.files) == (REVISION, 5100, 2)
    made = plan_host("rig1", wanted.settings, CATALOGUE, found, tmp_path)
    # The image is a day older than the fix: the patch applies.
    assert set(made.endpoint("main").patched_files) == {"config.json"}


def test_a_checkpoint_that_is_tagged_as_untrained_is_locked_as_such(site: Site, tmp_path: Path) -> None:
    wanted = want(site)
    tagged = {"sha": REVISION, "tags": ["qwen", "random-weights"]}
    site.pages[f"/api/models/{REPO}/revision/main"] = Answer(json.dumps(tagged).encode())
    found = resolve([wanted], CATALOGUE, Lock())
    assert found.checkpoints[f"{REPO}@main"].random_weights
    made = plan_host("rig1", wanted.settings, CATALOGUE, found, tmp_path)
    assert made.endpoint("main").smoke.random_weights


def test_the_driver_is_the_branchs_newest_by_debians_order_and_pinned_to_that_very_version(site: Site) -> None:
    found = resolve([want(site)], CATALOGUE, Lock())
    install = driver_install(found, "debian13", Settings())
    assert install.version == "595.91.07"
    assert install.pin == {"nvidia-driver-pinning-595.91.07": "595.91.07-1"}
    assert set(install.packages.values()) == {"595.91.07-1"}


def test_without_a_pin_of_that_version_the_branchs_own_is_taken(site: Site) -> None:
    wanted = want(site, driver_branch=610)
    install = driver_install(resolve([wanted], CATALOGUE, Lock()), "debian13", wanted.settings)
    assert install.pin == {"nvidia-driver-pinning-610": "610-1"}
    assert install.version == "610.57.04"


def test_an_exact_driver_is_taken_as_it_is(site: Site) -> None:
    wanted = want(site, driver_version="595.71.05")
    found = resolve([wanted], CATALOGUE, Lock())
    assert found.versions("debian13", "driver-595.71.05")["nvidia-driver-cuda"] == "595.71.05-1"


def test_docker_is_the_newest_release_or_the_one_asked_for(site: Site) -> None:
    found = resolve([want(site), want(site, docker_version="29.6.1")], CATALOGUE, Lock())
    assert found.versions("debian13", "docker")["docker-ce"] == "5:29.7.2-1~debian.13~trixie"
    assert found.versions("debian13", "docker-29.6.1")["docker-ce-cli"] == "5:29.6.1-1~debian.13~trixie"
    assert found.versions("debian13", "docker-29.6.1")["containerd.io"] == "2.10.1-1"


def test_the_toolkits_four_packages_have_one_version_that_all_of_them_have(site: Site) -> None:
    versions = resolve([want(site)], CATALOGUE, Lock()).versions("debian13", "toolkit")
    assert len(versions) == 4
    assert set(versions.values()) == {"1.20.1-1"}


def test_the_cuda_toolkit_stays_within_its_minor_version_and_may_be_off(site: Site) -> None:
    found = resolve([want(site)], CATALOGUE, Lock())
    assert found.versions("debian13", "cuda-toolkit-13-2") == {"cuda-toolkit-13-2": "13.2.1-1"}
    off = resolve([want(site, cuda_toolkit="off")], CATALOGUE, Lock())
    assert not any(group.startswith("cuda") for group in off.packages["debian13"])


def test_the_keys_of_all_repositories_are_recorded_with_checksum_and_fingerprint(site: Site) -> None:
    keys = resolve([want(site)], CATALOGUE, Lock()).keys
    docker = public_key("Docker")
    assert keys[f"{site.url}/docker/debian/gpg"] == KeyLock(
        sha256=hashlib.sha256(docker).hexdigest(), fingerprints=fingerprints(docker)
    )
    assert len(keys) == 3


@pytest.mark.parametrize("path", ["/docker/debian/gpg", "/toolkit/gpgkey", "/cuda/debian13/x86_64/8793F200.pub"])
def test_a_key_that_is_neither_the_publishers_nor_in_the_inventory_is_refused(site: Site, path: str) -> None:
    wanted = want(site)
    stranger = public_key("a stranger")
    (strange,) = fingerprints(stranger)
    site.pages[path] = Answer(stranger)
    said = unresolved(site, wanted)
    assert f"{path}: has the key {strange}, which is not the publisher's" in said
    assert f"if you trust it, set apt_keys: [{strange}]" in said
    keys = (*wanted.settings.apt_keys, strange)
    trusting = wanted.settings.model_copy(update={"apt_keys": keys})
    known = resolve([Want(trusting, "debian13")], CATALOGUE, Lock())
    # A lock does not make a key trusted: the inventory must still name it.
    with pytest.raises(ResolveError, match=strange):
        resolve([wanted], CATALOGUE, known)


@pytest.mark.parametrize("content", [b"", b"<html>sign in</html>", public_key("Docker") + public_key("a stranger")])
def test_what_is_not_one_key_file_is_refused_as_a_key(site: Site, content: bytes) -> None:
    wanted = want(site)
    site.pages["/docker/debian/gpg"] = Answer(content)
    assert "/docker/debian/gpg: is not an apt key: it is not a single armored public key block" in unresolved(
        site, wanted
    )


def test_what_the_lock_holds_is_not_asked_for_again(site: Site) -> None:
    wanted = want(site)
    known = resolve([wanted], CATALOGUE, Lock())
    site.asked.clear()
    site.pages.clear()
    assert resolve([wanted, wanted], CATALOGUE, known) == known
    assert site.asked == []


def test_two_hosts_of_one_kind_ask_once(site: Site) -> None:
    wanted = want(site)
    resolve([wanted, wanted], CATALOGUE, Lock())
    assert len(site.paths()) == len(set(site.paths()))


def test_a_need_keeps_its_locked_recipe_until_it_is_updated(site: Site, tmp_path: Path) -> None:
    need = {"for": "agents", "engine": "vllm", "model": "Qwen3.5-397B-A17B"}
    wanted = Want(want(site, recipe=need).settings)
    key = "agents-4gpu-vllm-Qwen3.5-397B-A17B"
    first = resolve([wanted], CATALOGUE, Lock())
    assert first.choices == {key: "vllm-nvfp4-cu130"}
    better = CATALOGUE.recipe("vllm-nvfp4-cu130").model_copy(update={"id": "better", "status": "verified"})
    newer = Catalog({**CATALOGUE.recipes, "better": better}, CATALOGUE.checkpoints)
    assert resolve([wanted], newer, Lock()).choices == {key: "better"}

    kept = resolve([wanted], newer, first)
    assert kept == first
    assert plan_host("rig1", wanted.settings, newer, kept, tmp_path).endpoint("main").recipe == "vllm-nvfp4-cu130"
    for word in ("choices", key):
        moved = resolve([wanted], newer, first.without([word]))
        assert plan_host("rig1", wanted.settings, newer, moved, tmp_path).endpoint("main").recipe == "better"
    assert moved.images == first.images


def test_without_a_distribution_image_and_checkpoint_are_resolved_alone(site: Site) -> None:
    found = resolve([Want(want(site).settings)], CATALOGUE, Lock())
    assert found.images and found.checkpoints and not found.packages and not found.keys


def test_the_lock_file_is_written_once_and_then_left_alone(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "lab.lock"
    found = ensure(path, [want(site)], CATALOGUE)
    assert locks.read(path) == found
    before = path.stat().st_mtime_ns
    assert ensure(path, [want(site)], CATALOGUE) == found
    assert path.stat().st_mtime_ns == before


def test_everything_that_cannot_be_resolved_is_told_at_once_and_the_rest_is_kept(site: Site, tmp_path: Path) -> None:
    wanted = want(site, driver_branch=590)
    del site.pages["/toolkit/gpgkey"]
    del site.pages[f"/v2/{NAME}/manifests/{VERSION}"]
    path = tmp_path / "lab.lock"
    with pytest.raises(ResolveError) as caught:
        ensure(path, [wanted], CATALOGUE)
    lines = str(caught.value).replace(site.url, "").splitlines()
    assert [line.split(":")[0] for line in lines] == ["driver_branch", "registry_mirror", "toolkit_mirror"]
    assert "has no nvidia-kernel-open-dkms of branch 590, only 595.9.1, 595.71.05, 595.91.07, 610.57.04" in lines[0]
    assert "/toolkit/gpgkey: answered 404" in lines[2]
    assert locks.read(path).versions("debian13", "docker")


def test_where_nothing_can_be_resolved_no_lock_is_left(site: Site, tmp_path: Path) -> None:
    wanted = want(site)
    site.pages.clear()
    with pytest.raises(ResolveError):
        ensure(tmp_path / "lab.lock", [wanted], CATALOGUE)
    assert list(tmp_path.iterdir()) == []


def test_an_exact_version_that_is_not_there_is_an_error_and_not_another_version(site: Site) -> None:
    assert "driver_version: " + CUDA_INDEX in unresolved(site, want(site, driver_version="595.58.03"))
    assert "has no docker-ce 28.0.0, only" in unresolved(site, want(site, docker_version="28.0.0"))
    message = unresolved(site, want(site, container_toolkit_version="1.20.2"))
    assert message.startswith("container_toolkit_version: ") and "only 1.19.1, 1.20.1" in message


def test_a_mirror_with_an_old_toolkit_only_is_an_error(site: Site) -> None:
    wanted = want(site)
    site.pages["/toolkit/stable/deb/amd64/Packages.gz"] = packages(("nvidia-container-toolkit", "1.19.1-1"))
    assert "of 1.20.1 or newer with all four packages, only 1.19.1" in unresolved(site, wanted)


def test_a_branch_that_the_distribution_lacks_is_an_error_in_the_tables_words(site: Site) -> None:
    assert "driver_branch 580 does not exist for Debian 13" in unresolved(site, want(site, driver_branch=580))


def test_an_index_that_is_none_is_an_error(site: Site) -> None:
    wanted = want(site)
    site.pages[CUDA_INDEX] = Answer(b"<html>login</html>")
    assert f"cuda_mirror: {CUDA_INDEX}: is not a gzipped package index" in unresolved(site, wanted)


def test_a_server_that_does_not_answer_is_named_with_its_setting() -> None:
    with serving() as gone:
        wanted = want(gone)
    message = unresolved(gone, wanted)
    assert "hub_endpoint: /api/models/" in message
    assert "no answer: " in message
    assert "check hub_endpoint and this machine's network" in message


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, f"there is no {REPO} at main"), (401, "set HF_TOKEN"), (503, "answered 503"), (429, "limits requests")],
)
def test_the_hubs_refusals_are_put_in_words(site: Site, status: int, words: str) -> None:
    wanted = want(site)
    site.pages[f"/api/models/{REPO}/revision/main"] = Answer(b"{}", status)
    assert words in unresolved(site, wanted)


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b'{"sha": "main"}'])
def test_a_hub_that_speaks_something_else_is_an_error(site: Site, body: bytes) -> None:
    wanted = want(site)
    site.pages[f"/api/models/{REPO}/revision/main"] = Answer(body)
    assert "hub_endpoint" in unresolved(site, wanted)


def test_the_hubs_token_is_shown_to_no_mirror(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    resolve([want(site)], CATALOGUE, Lock())
    assert not any("hf_secret" in str(request.headers) for request in site.asked)


def test_an_image_that_was_tampered_with_is_refused(site: Site) -> None:
    wanted = want(site)
    page = site.pages[f"/v2/{NAME}/manifests/{VERSION}"]
    assert isinstance(page, Answer)
    page.body += b" "
    assert "the response has the digest sha256:" in unresolved(site, wanted)


def test_an_image_for_other_machines_only_is_refused(site: Site) -> None:
    wanted = want(site)
    body = b'{"manifests": [{"digest": "sha256:x", "platform": {"os": "linux", "architecture": "arm64"}}]}'
    site.pages[f"/v2/{NAME}/manifests/{VERSION}"] = Answer(body)
    assert "has no image for linux/amd64" in unresolved(site, wanted)


def test_a_recipe_with_a_digest_gets_that_image_and_no_other(site: Site) -> None:
    wanted = want(site)
    digest = image_pages(site, NAME, "older", created="2026-01-01T00:00:00Z")
    recipe = CATALOGUE.recipe("vllm-nvfp4-cu130")
    exact = recipe.model_copy(update={"image": recipe.image.model_copy(update={"digest": digest})})
    catalog = Catalog({recipe.id: exact}, CATALOGUE.checkpoints)
    # What the lock holds for the tag is of no use then.
    known = resolve([wanted], CATALOGUE, Lock())
    found = resolve([wanted], catalog, known).images[TAG]
    assert found.digest == digest
    assert found.created == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_registry_that_wants_a_token_gets_one_from_the_realm_it_names(site: Site) -> None:
    digest = image_pages(site, "acme/thing", "1")
    guarded = dict(site.pages)
    challenge = f'Bearer realm="{site.url}/token",service="registry.example",scope="repository:acme/thing:pull"'

    def guard(answer: Answer) -> object:
        def page(request: Asked) -> Answer:
            if request.headers.get("authorization") == "Bearer t0":
                return answer
            return Answer(b"{}", 401, {"WWW-Authenticate": challenge})

        return page

    site.pages = {path: guard(answer) for path, answer in guarded.items()}  # type: ignore[arg-type, misc]
    query = "service=registry.example&scope=repository%3Aacme%2Fthing%3Apull"
    site.pages[f"/token?{query}"] = Answer(b'{"token": "t0"}')
    with Web() as web:
        assert image_lock(web, "acme/thing:1", site.url).digest == digest


def test_a_registry_that_wants_a_login_says_so(site: Site) -> None:
    site.pages["/v2/acme/thing/manifests/1"] = Answer(b"{}", 401, {"WWW-Authenticate": "Basic realm=x"})
    with Web() as web, pytest.raises(Unresolved) as caught:
        image_lock(web, "acme/thing:1", site.url)
    assert caught.value.reason == "needs a login"


@pytest.mark.parametrize(
    ("tag", "mirror", "expected"),
    [
        ("vllm/vllm-openai:a", None, ("https://registry-1.docker.io", "vllm/vllm-openai", "a")),
        ("vllm/vllm-openai:a", "http://m:5000", ("http://m:5000", "vllm/vllm-openai", "a")),
        ("debian:13", None, ("https://registry-1.docker.io", "library/debian", "13")),
        ("ghcr.io/acme/vllm:b", "http://m:5000", ("https://ghcr.io", "acme/vllm", "b")),
        ("reg.lan:5000/x:1", None, ("https://reg.lan:5000", "x", "1")),
    ],
)
def test_a_mirror_stands_for_docker_hub_alone(tag: str, mirror: str | None, expected: tuple[str, str, str]) -> None:
    assert registry_of(tag, mirror) == expected


def test_published_files_are_asked_for_once_absent_ones_too(site: Site, tmp_path: Path) -> None:
    world(site)
    content = b'{"quantization_config": {"ignore": []}}'
    for _ in range(2):
        assert published_file(site.url, REPO, REVISION, "config.json", tmp_path) == content
        assert published_file(site.url, REPO, REVISION, "hf_quant_config.json", tmp_path) is None
    assert len(site.asked) == 2


def test_a_hub_that_fails_is_not_taken_for_an_absent_file(site: Site, tmp_path: Path) -> None:
    site.pages[f"/{REPO}/resolve/{REVISION}/config.json"] = Answer(b"", 500)
    with pytest.raises(Unresolved, match="500"):
        published_file(site.url, REPO, REVISION, "config.json", tmp_path)
    assert list(tmp_path.rglob("*.absent")) == []


def test_published_files_are_only_read_at_a_commit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a commit"):
        published_file("http://127.0.0.1:9", REPO, "main", "config.json", tmp_path)
