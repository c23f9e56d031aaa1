"""The page of rigup status: what it says, what cannot get in, and how it looks to a browser and to people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rigup.cli._status_data import HostStatus, Status
from rigup.cli._status_page import as_page, last_runs, write_page
from rigup.cli._status_words import Cell
from rigup.facts.drift import DailyAuditValue
from rigup.facts.journal import Xid
from tests.unit.chromium import Chromium, axe_core, chromium
from tests.unit.status_sample import AT, endpoint, gpu, host, in_zone

EVIL = "</td></style><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'{{ 7*7 }}\u202e\x1b[2J"
DEPLOYS = [("2026-11-23T20-40-11", [Cell("done in 512.0 s, 31 changes", "good")])]
FLEET = Status(
    AT,
    {
        "rig1": host(
            endpoint(),
            gpus=tuple(gpu(n, throttled=("power limit",) if n == 1 else ()) for n in range(4)),
            audit=DailyAuditValue("2026-11-24T03:00:00+00:00", "abc"),
        ),
        "rig2": host(
            endpoint(name="left", model="GLM-4.6", public_url=None, running=64, waiting=3, kv_cache=0.97),
            endpoint(
                name="right", state="starting", since="2026-11-24T07:58:30+00:00", last_start_s=312, restarts=2,
                tokens_per_s=None, running=None, waiting=None, kv_cache=None,
            ),
            gpus=(gpu(0), gpu(1, throttled=("heat",), temperature=94), gpu(2), gpu(3)),
            xids=(Xid("0000:41:00.0", 79, 2, 1795420800.0),),
            downloads=(
                {"checkpoint": "nvidia--Q--abab", "step": "downloading", "bytes_done": 60_000_000_000,
                 "bytes_total": 240_000_000_000, "rate": 90_000_000, "doing": "8 files from hub"},
            ),
            audit=DailyAuditValue("2026-11-24T03:00:00+00:00", "abc", ("files: /etc/docker/daemon.json was changed",)),
        ),
        "rig3": HostStatus(AT, error="no connection to ops@192.0.2.13, port 22: timed out"),
    },
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_utc() -> Iterator[None]:
    with in_zone("UTC"):
        yield


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def text_of(page: str) -> str:
    """The words of a page without its markup."""
    return " ".join(re.sub("<[^>]+>", " ", page.partition("</style>")[2]).split())


def test_it_begins_with_what_needs_attention() -> None:
    words = text_of(as_page(FLEET, DEPLOYS))
    order = ["Needs attention rig3 : no connection", "Hosts host", "Endpoints host", "GPUs host", "Last deploys run"]
    order += ["Daily audit host"]
    assert [words.index(each) for each in order] == sorted(words.index(each) for each in order)
    assert "rig2 : GPU 2 reported Xid 79 (2 times), last at 2026-11-23 08:00 UTC. Run rigup diagnose rig2" in words
    assert "downloading, 60.0 GB of 240.0 GB, 90 MB/s, about 33 min 20 s left, 8 files from hub" in words
    calm = text_of(as_page(Status(AT, {"rig1": host(endpoint())})))
    assert "Nothing: all hosts answer and all endpoints serve." in calm
    assert "GPUs host" not in calm and "Last deploys" not in calm


def hostile(text: str) -> Status:
    """A fleet that says this wherever a host can say anything."""
    return Status(AT, {
        "rig1": HostStatus(AT, error=text),
        "rig2": host(
            endpoint(name=text, recipe=text, model=text, url=text, public_url=text, state=text),
            notes=(text,),
            gpus=(gpu(0, name=text, address=text, throttled=(text,)),),
            xids=(Xid(text, 79, 1, 1795420800.0),),
            downloads=({"checkpoint": text, "step": text, "doing": text},),
            audit=DailyAuditValue("2026-11-24T03:00:00+00:00", text, (text,)),
        ),
    })  # fmt: skip


def test_nothing_that_a_host_says_becomes_markup() -> None:
    said, plain = as_page(hostile(EVIL), [(EVIL, [Cell(EVIL)])]), as_page(hostile("x"), [("x", [Cell("x")])])
    assert re.findall(r"<[a-z/!][^ >]*", said) == re.findall(r"<[a-z/!][^ >]*", plain)
    assert "&lt;script&gt;" in said and "{{ 7*7 }}" in said
    assert "\u202e" not in said and "\x1b" not in said and "\\x1b[2J" in said


def test_a_browser_runs_and_fetches_nothing_of_it(browser: Chromium, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_page(file, hostile(EVIL), tmp_path)
    browser.requests.clear()
    browser.open(file.as_uri())
    assert browser.evaluate("document.title") == "6 to look at: rigup status"
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    assert (browser.requests, browser.complaints) == ([file.as_uri()], [])


def test_its_policy_stops_a_script_that_would_get_in(browser: Chromium, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    got_in = "<script>document.title = 'owned'</script><img src='http://192.0.2.1/x'>"
    file.write_text(as_page(FLEET).replace("<main>", f"<main>{got_in}"))
    browser.open(file.as_uri())
    assert browser.evaluate("document.title") == "6 to look at: rigup status"
    assert len(browser.complaints) == 2
    browser.complaints.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)], ids=["phone", "desktop"])
def test_everybody_can_read_it(browser: Chromium, tmp_path: Path, width: int, height: int, scheme: str) -> None:
    file = tmp_path / "page.html"
    file.write_text(as_page(FLEET, DEPLOYS))
    browser.show(width, height, scheme)
    browser.requests.clear()
    browser.open(file.as_uri())
    (tmp_path / f"{width}-{scheme}.png").write_bytes(browser.picture())
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    back = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(246, 247, 249)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert (browser.requests, browser.complaints) == ([file.as_uri()], [])
    browser.evaluate(f"{axe_core()}; 0")
    found = browser.evaluate("axe.run().then(done => done.violations.map(each => each.id + ': ' + each.help))")
    assert found == []


def test_it_fits_on_paper(browser: Chromium, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(as_page(FLEET, DEPLOYS))
    browser.open(file.as_uri())
    pages = browser.paper().count(b"/Type /Page\n")
    assert pages == 2


def test_a_fleet_makes_a_small_page() -> None:
    (rig,) = [found for name, found in FLEET.hosts.items() if name == "rig2"]
    full = replace(rig, gpus=tuple(gpu(n) for n in range(8)))
    assert len(as_page(Status(AT, {f"rig{n}": full for n in range(20)})).encode()) < 300_000
    # What no real host says.
    endless = host(*[endpoint(model="x" * 10_000)] * 10_000, gpus=(gpu(0),) * 10_000)
    assert len(as_page(Status(AT, {"rig1": endless})).encode()) < 300_000


def test_the_last_runs_are_told_newest_first(tmp_path: Path) -> None:
    for day, events in (("23", [{"event": "end", "at": AT, "seconds": 512.0}]), ("24", [])):
        run = tmp_path / f"2026-11-{day}T20-40-11"
        run.mkdir()
        begin = {"event": "begin", "at": AT, "hosts": ["rig1"], "inventory": None, "then": ""}
        (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in [begin, *events]))
    assert last_runs(tmp_path) == [
        ("2026-11-24T20-40-11", [Cell("not finished, nothing changed so far", "busy")]),
        ("2026-11-23T20-40-11", [Cell("done in 512 s, nothing changed", "good")]),
    ]
    assert last_runs(tmp_path / "none") == []
