"""The mirror as lab hosts use it: over HTTP, with upstream servers that change, break and disappear."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab.mirror import identity, server
from lab.mirror.upstreams import Upstreams
from tests.unit.mirror_upstream import Upstream, mirror, upstream
from tests.unit.waiting import HANG_S

POOL = "/debian/pool/main/f/foo/foo_1.0_all.deb"
RELEASE = "/debian/dists/trixie/InRelease"


@pytest.fixture
def behind() -> Iterator[Upstream]:
    with upstream() as world:
        world.add(POOL, b"package " * 50_000)
        world.add(RELEASE, b"release 1")
        yield world


def sources_of(world: Upstream, *more: str) -> Upstreams:
    return Upstreams(
        f"{world.url}/debian", f"{world.url}/debian-security", (f"{world.url}/simple", *more), certificates=None
    )


@pytest.fixture
def front(behind: Upstream, tmp_path: Path) -> Iterator[Any]:
    with mirror(tmp_path, sources_of(behind)) as running:
        yield running


def get(front: Any, path: str, **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(front.url + path, headers=given, timeout=HANG_S)


def breaks_off(front: Any, path: str) -> bool:
    """Whether the answer ends before its announced length, or is an error if that was known in time."""
    try:
        return get(front, path).status_code == 502
    except httpx.RemoteProtocolError:
        return True


def test_a_package_is_asked_for_once_and_served_for_ever(
    front: Any, behind: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DISTS_MAX_AGE", 0.0)
    assert get(front, POOL).content == behind.files[POOL][0]
    assert get(front, POOL).content == behind.files[POOL][0]
    behind.go_away()
    assert get(front, POOL).content == behind.files[POOL][0]
    assert behind.asked[POOL] == 1


def test_ubuntus_archive_has_debians_packages_and_the_labs_own(front: Any, behind: Upstream, tmp_path: Path) -> None:
    behind.add("/debian-security/pool/updates/main/f/foo/foo_1.1_all.deb", b"fixed")
    own = front.www / "ubuntu/pool/lab/linux-image-generic.deb"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"kernel")
    assert get(front, POOL.replace("/debian/", "/ubuntu/")).content == behind.files[POOL][0]
    assert get(front, "/ubuntu/pool/updates/main/f/foo/foo_1.1_all.deb").content == b"fixed"
    assert get(front, "/ubuntu/pool/lab/linux-image-generic.deb").content == b"kernel"


def test_many_hosts_asking_at_once_cost_one_request(front: Any, behind: Upstream) -> None:
    behind.goes_on.clear()
    all_ask = threading.Barrier(8, behind.goes_on.set, HANG_S)

    def ask(_: int) -> bytes:
        with httpx.stream("GET", front.url + POOL, timeout=HANG_S) as response:
            all_ask.wait()
            return response.read()

    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(ask, range(8)))
    assert set(bodies) == {behind.files[POOL][0]}
    assert behind.asked[POOL] == 1


def test_a_host_gets_the_first_bytes_before_the_last_have_arrived(front: Any, behind: Upstream) -> None:
    behind.goes_on.clear()
    with httpx.stream("GET", front.url + POOL, timeout=HANG_S) as response:
        pieces = response.iter_raw()
        first = next(pieces)
        behind.goes_on.set()
        assert first and first + b"".join(pieces) == behind.files[POOL][0]


def test_an_index_is_asked_for_again_when_it_is_old(
    front: Any, behind: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert get(front, RELEASE).content == b"release 1"
    behind.add(RELEASE, b"release 2")
    assert get(front, RELEASE).content == b"release 1", "within its time an index is taken as it is"
    monkeypatch.setattr(server, "DISTS_MAX_AGE", 0.0)
    assert get(front, RELEASE).content == b"release 2"
    assert get(front, RELEASE).content == b"release 2"
    assert behind.answered_unchanged[RELEASE] == 1


def test_an_old_index_is_served_while_the_archive_is_away(
    front: Any, behind: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DISTS_MAX_AGE", 0.0)
    assert get(front, RELEASE).content == b"release 1"
    behind.go_away()
    assert get(front, RELEASE).content == b"release 1"


def test_a_missing_file_is_not_found_and_an_unreachable_server_is_a_bad_gateway(front: Any, behind: Upstream) -> None:
    assert get(front, "/debian/pool/nothing").status_code == 404
    behind.go_away()
    answer = get(front, "/debian/pool/other")
    assert answer.status_code == 502
    assert behind.url in answer.text


def test_an_interrupted_download_is_never_stored(front: Any, behind: Upstream, tmp_path: Path) -> None:
    behind.truncated.add(POOL)
    assert breaks_off(front, POOL)
    assert not [path for path in (tmp_path / "cache").rglob("foo*") if path.is_file()], "nothing half is kept"
    behind.truncated.clear()
    assert get(front, POOL).content == behind.files[POOL][0]


def test_a_new_index_that_breaks_off_leaves_the_old_one(
    front: Any, behind: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DISTS_MAX_AGE", 0.0)
    assert get(front, RELEASE).content == b"release 1"
    behind.add(RELEASE, b"release 2" * 50_000)
    behind.truncated.add(RELEASE)
    assert breaks_off(front, RELEASE)
    behind.go_away()
    assert get(front, RELEASE).content == b"release 1"


def test_a_range_of_a_package_resumes_a_download(front: Any, behind: Upstream) -> None:
    whole = behind.files[POOL][0]
    answer = get(front, POOL, Range="bytes=10-19")
    assert (answer.status_code, answer.content) == (206, whole[10:20])
    assert answer.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert get(front, POOL, Range=f"bytes={len(whole) - 5}-").content == whole[-5:]
    assert get(front, POOL, Range="bytes=-3").content == whole[-3:]
    assert get(front, POOL, Range=f"bytes={len(whole)}-").status_code == 416


def test_a_range_of_a_changed_file_returns_the_whole_file(front: Any, behind: Upstream) -> None:
    stale = formatdate(1_600_000_000, usegmt=True)
    answer = get(front, POOL, Range="bytes=10-19", If_Range=stale)
    assert (answer.status_code, len(answer.content)) == (200, len(behind.files[POOL][0]))


def test_what_a_host_has_already_is_not_sent_again(front: Any) -> None:
    first = get(front, POOL)
    again = get(front, POOL, If_Modified_Since=first.headers["last-modified"])
    assert (again.status_code, again.content) == (304, b"")


def test_head_returns_the_length_and_no_content(front: Any, behind: Upstream) -> None:
    answer = httpx.head(front.url + POOL, timeout=HANG_S)
    assert (answer.headers["content-length"], answer.content) == (str(len(behind.files[POOL][0])), b"")


def test_repositories_of_the_lab_are_served_from_disk(front: Any, tmp_path: Path) -> None:
    (tmp_path / "www/kernel").mkdir()
    (tmp_path / "www/kernel/Packages").write_text("Package: linux\n")
    assert get(front, "/kernel/Packages").text == "Package: linux\n"
    assert get(front, "/kernel/./Packages").text == "Package: linux\n"
    assert get(front, "/kernel/").status_code == 404
    assert get(front, "/kernel/Packages/x").status_code == 404


def test_no_path_leads_out_of_the_mirror(front: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for path in ("/../secret", "/kernel/../../secret", "/%2e%2e/secret", "/..%2fsecret"):
        with socket.create_connection(("127.0.0.1", front.server_port)) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert b" 404 " in connection.recv(65536).splitlines()[0]


def add_project(world: Upstream, name: str, page: str, content_type: str = "text/html") -> None:
    world.add(f"/simple/{name}/", page.encode(), content_type)


def test_links_of_an_html_index_lead_to_the_mirror(front: Any, behind: Upstream) -> None:
    page = '<a href="../../files/foo-1.0.tar.gz#sha256=ab" data-requires-python="&gt;=3.8">foo-1.0.tar.gz</a>'
    add_project(behind, "foo", page)
    behind.add("/files/foo-1.0.tar.gz", b"a sdist")
    text = get(front, "/pypi/simple/foo/").text
    assert 'href="/pypi/files/foo/foo-1.0.tar.gz#sha256=ab"' in text
    assert 'data-requires-python="&gt;=3.8"' in text
    assert behind.url not in text
    assert get(front, "/pypi/files/foo/foo-1.0.tar.gz").content == b"a sdist"


def test_a_json_index_and_its_metadata_are_passed_on(front: Any, behind: Upstream) -> None:
    wheel = "foo-1.0-py3-none-any.whl"
    page = (
        f'{{"files": [{{"filename": "{wheel}", "url": "{behind.url}/w/{wheel}", "hashes": {{"sha256": "cd"}},'
        ' "requires-python": ">=3.9", "yanked": "broken", "core-metadata": {"sha256": "ef"}}]}'
    )
    add_project(behind, "foo", page, "application/vnd.pypi.simple.v1+json")
    behind.add(f"/w/{wheel}", b"a wheel")
    behind.add(f"/w/{wheel}.metadata", b"Metadata-Version: 2.1\n")
    text = get(front, "/pypi/simple/foo/").text
    assert f'href="/pypi/files/foo/{wheel}#sha256=cd"' in text
    assert 'data-yanked="broken"' in text
    assert 'data-core-metadata="sha256=ef"' in text
    assert get(front, f"/pypi/files/foo/{wheel}").content == b"a wheel"
    assert get(front, f"/pypi/files/foo/{wheel}.metadata").content == b"Metadata-Version: 2.1\n"
    assert get(front, "/pypi/files/foo/other.whl").status_code == 404


def test_a_wheel_is_kept_when_the_index_is_away(behind: Upstream, tmp_path: Path) -> None:
    add_project(behind, "foo", f'<a href="{behind.url}/w/foo-1.0-py3-none-any.whl">foo</a>')
    behind.add("/w/foo-1.0-py3-none-any.whl", b"a wheel")
    with mirror(tmp_path, sources_of(behind)) as first:
        assert get(first, "/pypi/files/foo/foo-1.0-py3-none-any.whl").content == b"a wheel"
    behind.go_away()
    with mirror(tmp_path, sources_of(behind)) as second:
        assert get(second, "/pypi/files/foo/foo-1.0-py3-none-any.whl").content == b"a wheel"


def test_several_indexes_are_one_and_the_first_wins(behind: Upstream, tmp_path: Path) -> None:
    local = tmp_path / "local"
    (local / "simple/foo").mkdir(parents=True)
    (local / "foo-2.0.tar.gz").write_bytes(b"from disk")
    names = ("foo-1.0.tar.gz", "foo-2.0.tar.gz")
    links = "".join(f'<a href="../../{name}">{name}</a>' for name in names)
    (local / "simple/foo/index.html").write_text(links)
    add_project(behind, "foo", f'<a href="{behind.url}/w/foo-1.0.tar.gz">foo-1.0.tar.gz</a>')
    behind.add("/w/foo-1.0.tar.gz", b"from the server")
    with mirror(tmp_path, sources_of(behind, f"file://{local}/simple")) as front:
        assert get(front, "/pypi/simple/foo/").text.count("<a ") == 2
        assert get(front, "/pypi/files/foo/foo-1.0.tar.gz").content == b"from the server"
        assert get(front, "/pypi/files/foo/foo-2.0.tar.gz").content == b"from disk"


def test_a_project_is_found_under_its_normalised_name(front: Any, behind: Upstream) -> None:
    add_project(behind, "foo-bar", f'<a href="{behind.url}/w/foo_bar-1.tar.gz">x</a>')
    answer = httpx.get(f"{front.url}/pypi/simple/Foo.Bar/", follow_redirects=True, timeout=HANG_S)
    assert answer.url.path == "/pypi/simple/foo-bar/"
    assert "foo_bar-1.tar.gz" in answer.text
    assert get(front, "/pypi/simple/nothing/").status_code == 404


def test_a_server_of_other_code_greets_differently(front: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = get(front, "/").text.strip()
    assert here == identity.greeting()
    (tmp_path / "server.py").write_text("# changed\n")
    monkeypatch.setattr(identity, "__file__", str(tmp_path / "identity.py"))
    assert identity.greeting() != here
