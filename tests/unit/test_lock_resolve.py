"""Resolving: from a registry, a hub and apt indexes on loopback into the lock."""

import ast
import gzip
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rigup.catalog.loader import Catalog
from rigup.config.settings import Settings
from rigup.lock import apt, http, hub
from rigup.lock import lockfile as locks
from rigup.lock.http import Unresolved, Web
from rigup.lock.hub import checkpoint_lock, published_file, token_for
from rigup.lock.lockfile import CheckpointLock, KeyLock, Lock
from rigup.lock.openpgp import fingerprints
from rigup.lock.packages import driver_install
from rigup.lock.registry import image_lock, registry_of
from rigup.lock.resolve import ResolveError, Want, ensure, resolve
from rigup.plan.host import plan_host
from tests.unit.loopback import Answer, Asked, Site, serving
from tests.unit.sample import CATALOGUE, REPO, REVISION, TAG
from tests.unit.small_world import CONFIG, CREATED, image_pages, packages, public_key, published, world
from tests.unit.waiting import until

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
    assert (checkpoint.revision, checkpoint.bytes, checkpoint.files) == (REVISION, 5100, 3)
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


def test_what_counts_of_the_published_config_is_locked(site: Site) -> None:
    wanted = want(site)
    config = resolve([wanted], CATALOGUE, Lock()).checkpoints[f"{REPO}@main"].config
    assert config == {"quantization_config": {}}
    site.pages[f"{RESOLVED}/config.json"] = Answer(CONFIG.upper())
    with pytest.raises(ResolveError, match="differs from the file that the hub lists"):
        resolve([wanted], CATALOGUE, Lock())


@pytest.mark.parametrize(
    "content",
    [
        b"[1]",
        b"{",
        b'{"layer_types": ["\\ud800"]}',
        b'{"hidden_size": NaN}',
        b'{"hidden_size": 1e999}',
        b'{"layer_types": "%s"}' % (70000 * b"x"),
    ],
)
def test_a_config_that_no_lock_can_keep_is_left_out(site: Site, content: bytes) -> None:
    wanted = want(site)
    tree = next(path for path in site.pages if "/tree/" in path and "cursor" not in path)
    files = json.loads(site.pages[tree].body)
    files = [published("config.json", content) if each["path"] == "config.json" else each for each in files]
    site.pages[tree].body = json.dumps(files).encode()
    site.pages[f"{RESOLVED}/config.json"] = Answer(content)
    assert resolve([wanted], CATALOGUE, Lock()).checkpoints[f"{REPO}@main"].config is None


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


@pytest.fixture
def checkpoint(site: Site) -> CheckpointLock:
    return resolve([want(site)], CATALOGUE, Lock()).checkpoints[f"{REPO}@main"]


RESOLVED = f"/{REPO}/resolve/{REVISION}"


def test_published_files_are_asked_for_once_absent_ones_never(
    site: Site, checkpoint: CheckpointLock, tmp_path: Path
) -> None:
    site.asked.clear()
    for _ in range(2):
        assert published_file(site.url, REPO, checkpoint, "config.json", tmp_path) == CONFIG
        assert published_file(site.url, REPO, checkpoint, "hf_quant_config.json", tmp_path) is None
    assert site.paths() == [f"{RESOLVED}/config.json"]


def test_a_hub_that_fails_is_told(site: Site, checkpoint: CheckpointLock, tmp_path: Path) -> None:
    site.pages[f"{RESOLVED}/config.json"] = Answer(b"", 500)
    with pytest.raises(Unresolved, match="500"):
        published_file(site.url, REPO, checkpoint, "config.json", tmp_path)


EVIL = [CONFIG.replace(b"{", b'{"auto_map": {"AutoModel": "evil.Model"}, ', 1), CONFIG.upper(), CONFIG[:-1], b""]


@pytest.mark.parametrize("content", EVIL)
def test_other_bytes_than_the_lock_names_enter_no_plan(site: Site, tmp_path: Path, content: bytes) -> None:
    """From a false hub, and from a cache that somebody changed; the hub then has the right ones."""
    wanted = want(site)
    found = resolve([wanted], CATALOGUE, Lock())
    page = site.pages[f"{RESOLVED}/config.json"]
    site.pages[f"{RESOLVED}/config.json"] = Answer(content)
    with pytest.raises(ResolveError, match="differs from the file that the lock names"):
        plan_host("rig1", wanted.settings, CATALOGUE, found, tmp_path)
    assert not list(tmp_path.rglob("*config.json*"))

    site.pages[f"{RESOLVED}/config.json"] = page
    good = plan_host("rig1", wanted.settings, CATALOGUE, found, tmp_path)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        path.write_bytes(content)
    assert plan_host("rig1", wanted.settings, CATALOGUE, found, tmp_path) == good


def test_a_lock_without_checksums_is_not_enough(site: Site, checkpoint: CheckpointLock, tmp_path: Path) -> None:
    bare = checkpoint.model_copy(update={"listing": {}})
    with pytest.raises(Unresolved, match="run `rigup update checkpoints`"):
        published_file(site.url, REPO, bare, "config.json", tmp_path)


def test_a_large_file_is_verified_by_its_sha256(site: Site, checkpoint: CheckpointLock, tmp_path: Path) -> None:
    content = b"large"
    listing = {"x": f"{len(content)} sha256:{hashlib.sha256(content).hexdigest()}"}
    locked = checkpoint.model_copy(update={"listing": listing})
    site.pages[f"{RESOLVED}/x"] = Answer(content)
    assert published_file(site.url, REPO, locked, "x", tmp_path / "a") == content
    site.pages[f"{RESOLVED}/x"] = Answer(b"Large")
    with pytest.raises(Unresolved, match="differs"):
        published_file(site.url, REPO, locked, "x", tmp_path / "b")


def test_an_images_configuration_is_verified_too(site: Site) -> None:
    """Its date decides which patches a recipe gets."""
    wanted = want(site)
    blob = next(path for path in site.pages if path.startswith(f"/v2/{NAME}/blobs/"))
    page = site.pages[blob]
    assert isinstance(page, Answer)
    page.body = page.body.replace(b"2026", b"2031")
    assert "the response has the digest sha256:" in unresolved(site, wanted)


@pytest.mark.parametrize("path", ["../x", "a/../x", "/etc/x", "a//b", ".", "a\nb", "a/.."])
def test_a_file_outside_the_repository_is_refused(site: Site, path: str) -> None:
    wanted = want(site)
    tree = next(page for page in site.pages if page.endswith("&cursor=x"))
    site.pages[tree] = Answer(json.dumps([published(path, b"")]).encode())
    assert "is not a path in a repository" in unresolved(site, wanted)


@pytest.mark.parametrize("body", [b'{"a":' * 100_000, b"[5]", b'[{"type": "file", "path": {}}]', b"\xff"])
def test_answers_of_another_form_are_errors_in_words(site: Site, body: bytes) -> None:
    """Whatever server sends them; the others are still asked."""
    wanted = want(site)
    resolve([wanted], CATALOGUE, Lock())
    for path in {request.path for request in site.asked if not request.path.endswith((".deb", "/gpg", "/gpgkey"))}:
        page, site.pages[path] = site.pages[path], Answer(body)
        with pytest.raises(ResolveError):
            resolve([wanted], CATALOGUE, Lock())
        site.pages[path] = page


# Requests of the control machine.


def test_only_one_module_makes_requests() -> None:
    """So that its limits are those of every request."""
    root = Path(__file__).parents[2] / "rigup"
    clients = {"httpx", "urllib.request", "urllib3", "requests", "http.client", "aiohttp", "huggingface_hub"}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            allowed = path.name == "http.py" or path.name == "registry.py"
            assert allowed or clients.isdisjoint(names), path


def test_only_the_lock_and_one_function_that_verifies_read_from_the_network_and_from_the_cache() -> None:
    """So that every byte of a plan is one that the lock names."""
    root = Path(__file__).parents[2] / "rigup"
    asking, reading = set(), set()
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
            place = f"{path.relative_to(root)} {function.name}"
            if "Web" in calls:
                asking.add(place)
            if path.parent.name == "plan" and any(
                re.search(r"(^|\.)(open|read_bytes|read_text)$", name) for name in calls
            ):
                reading.add(place)
    # The last one drafts a recipe: it reads as a new lock would, and verifies the files against that.
    assert asking == {"lock/resolve.py _fill", "lock/hub.py published_file", "lock/published.py read_published"}
    assert reading == set()


def raw(*parts: bytes, every_s: float = 0.0, left: threading.Event | None = None) -> Iterator[str]:
    """A server that sends these bytes to everyone, the last one for ever; the URL of it. `left`: a client has gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(line,), daemon=True).start()

        def talk(line: socket.socket) -> None:
            with line, suppress(OSError):
                line.recv(65536)
                for part in parts[:-1]:
                    line.sendall(part)
                while True:
                    line.sendall(parts[-1])
                    time.sleep(every_s)
            if left is not None:
                left.set()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n"


@pytest.mark.parametrize("parts", [(b"HTTP/1.1 200 OK\r\n", b"x"), (HEAD, b"x")], ids=["in the header", "in the body"])
def test_an_answer_that_drips_has_a_deadline(monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, ...]) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 1.0)
    with contextmanager(raw)(*parts, every_s=0.05) as url, Web() as web, pytest.raises(Unresolved) as caught:
        web.get("hub_endpoint", url)
    assert caught.value.reason in ("did not answer completely within 1 s", "the deadline has passed")


def test_after_the_deadline_an_answer_is_not_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 0.2)
    left = threading.Event()
    with contextmanager(raw)(HEAD, b"x", every_s=0.01, left=left) as url, Web() as web:
        with pytest.raises(Unresolved):
            web.get("hub_endpoint", url)
        until(left.is_set)


def test_an_answer_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BYTES", 1_000_000)
    with (
        contextmanager(raw)(HEAD, b"x" * 65536) as url,
        Web() as web,
        pytest.raises(Unresolved, match="more than 1000000"),
    ):
        web.get("hub_endpoint", url)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_compressed_answer_is_refused_unread(site: Site, encoding: str) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    site.pages["/bomb"] = Answer(bomb, headers={"Content-Encoding": encoding})
    with Web() as web, pytest.raises(Unresolved, match="which was not asked for"):
        web.get("hub_endpoint", f"{site.url}/bomb")
    assert site.asked[0].headers["accept-encoding"] == "identity"


def test_a_package_index_that_is_a_bomb_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "MAX_INDEX_BYTES", 1_000_000)
    wanted = want(site)
    site.pages[CUDA_INDEX] = Answer(gzip.compress(bytes(10_000_000)))
    assert f"cuda_mirror: {CUDA_INDEX}: has more than 1000000 bytes" in unresolved(site, wanted)


def test_a_listing_without_end_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_PAGES", 3)
    wanted = want(site)
    tree = next(page for page in site.pages if page.endswith("&cursor=x"))
    for at in range(5):
        link = {"Link": f'<{site.url}/more{at}>; rel="next"'}
        site.pages[f"/more{at - 1}" if at else tree] = Answer(b"[]", headers=link)
    assert "lists files on more than 3 pages" in unresolved(site, wanted)


def test_the_proxies_of_the_environment_are_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["http://hub.invalid/x"] = Answer(b"through the proxy")
    site.pages["/x"] = Answer(b"directly")
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Web() as web:
        assert web.get("hub_endpoint", "http://hub.invalid/x").content == b"through the proxy"
        assert web.get("hub_endpoint", f"{site.url}/x").content == b"directly"


def test_https_goes_through_its_proxy(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", site.url)
    with Web() as web, pytest.raises(Unresolved, match="no answer"):
        web.get("hub_endpoint", "https://hub.invalid/x")
    assert site.connects == ["hub.invalid:443"]


@pytest.mark.parametrize("url", ["http://huggingface.co", "http://huggingface.co:443", "https://huggingface.co.evil"])
def test_the_token_is_sent_with_tls_to_the_hub_only(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert token_for(url) is None
    with serving() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("https_proxy", proxy.url)
        with Web() as web, pytest.raises(Unresolved):
            checkpoint_lock(web, url, REPO, "main")
        assert "hf_secret" not in str(proxy.asked)
    assert token_for("https://huggingface.co") is not None


def test_the_token_does_not_follow_the_hub_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" in str(hub._headers("https://huggingface.co/api/models/x"))
    assert hub._headers("https://cdn.example/api/models/x") == hub._headers("http://huggingface.co/api") == {}
