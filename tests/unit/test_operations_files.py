"""files.install, and what is merged into Docker's daemon.json, on this machine, for real."""

from __future__ import annotations

import grp
import json
import os
import pwd
import stat
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.hiddenvalue import HiddenValue

from rigup import ledger
from rigup.host_config import LOG_KEYS
from rigup.operations import docker, files
from tests.unit.deploys import Outcome, on_this_machine

ME = {"user": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}
ODD = "a line with 'quotes', \"more\", $HOME, `id`, \\n, % and é\n\n\tlast without end"


def install(path: Path, content: Any = None, **arguments: Any) -> Outcome:
    return on_this_machine(files.install, dest=str(path), content=content, **{**ME, **arguments})


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_appears_with_content_mode_and_directories_and_then_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "it's deep" / "$file"

    first = install(path, ODD, mode="640")
    second = install(path, ODD, mode="640")

    assert (first.foreseen, first.changed, first.failed) == (True, True, False)
    assert (second.foreseen, second.changed, second.failed) == (False, False, False)
    assert path.read_text() == ODD
    assert mode(path) == 0o640
    assert mode(path.parent) == 0o755
    assert os.listdir(path.parent) == ["$file"]


@pytest.mark.parametrize("content", ["", b"", bytes(range(256)) * 9000])
def test_any_bytes_arrive_unchanged(tmp_path: Path, content: str | bytes) -> None:
    install(tmp_path / "file", content)

    assert (tmp_path / "file").read_bytes() == (content.encode() if isinstance(content, str) else content)


def test_a_wrong_mode_is_put_right(tmp_path: Path) -> None:
    path = tmp_path / "file"
    install(path, "same", mode="600")
    path.chmod(0o666)

    assert install(path, "same", mode="600").changed
    assert mode(path) == 0o600


def test_a_file_is_replaced_in_one_step_and_kept_on_request(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    before = path.stat().st_ino

    install(path, "new", backup=True)

    assert path.stat().st_ino != before
    assert path.read_text() == "new"
    assert Path(files.backup_of(str(path))).read_text() == "old"


def test_what_its_validator_refuses_never_replaces_anything(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("good old content")

    outcome = install(path, "bad", validate=["grep", "-q", "good", "%s"])

    assert outcome.failed
    assert "was not changed" in outcome.told
    assert "Traceback" not in outcome.told
    assert path.read_text() == "good old content"
    assert os.listdir(tmp_path) == ["file"]


def test_the_validator_sees_the_new_content_under_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "llm@main.service"

    outcome = install(
        path, "good", validate=["sh", "-c", 'grep -q good "$1" && basename "$1" | grep -qx llm@main.service', "-", "%s"]
    )

    assert not outcome.failed, outcome.told


def test_a_secret_is_never_readable_by_others_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "env"
    seen = tmp_path / "seen"
    look = f'find "$(dirname "$1")" -printf "%m %f\\n" > {seen}'

    outcome = install(
        path, HiddenValue("TOKEN=sesame\n"), mode="600", secret=True, validate=["sh", "-c", look, "-", "%s"], name="env"
    )

    assert path.read_text() == "TOKEN=sesame\n"
    assert mode(path) == 0o600
    assert "sesame" not in outcome.told
    assert seen.read_text().splitlines() == ["700 .rigup-new.env", "600 env"]


def test_a_secret_with_an_open_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lets others read it"):
        install(tmp_path / "env", "x", mode="640", secret=True)


def test_leftovers_of_a_killed_run_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".rigup-new.file").mkdir()
    (tmp_path / ".rigup-new.file" / "file").write_text("half")

    assert not install(tmp_path / "file", "whole").failed
    assert (tmp_path / "file").read_text() == "whole"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_what_is_no_ordinary_file_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "link":
        path.symlink_to("elsewhere")
    else:
        path.mkdir()

    outcome = install(path, "new")

    assert outcome.failed
    assert kind in outcome.told
    assert path.is_symlink() or path.is_dir()


def test_content_comes_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"\x00\xff")

    install(tmp_path / "file", src=str(tmp_path / "source"))

    assert (tmp_path / "file").read_bytes() == b"\x00\xff"


OTHERS = {"data-root": "/mnt/docker", "features": {"containerd-snapshotter": False}, "proxies": {"http-proxy": "u:p@x"}}
OURS = {"features": {"cdi": True}, "runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}}}


@pytest.fixture
def daemon(daemon_json: Path) -> Path:
    """Docker's configuration, in a directory that is there."""
    daemon_json.parent.mkdir()
    return daemon_json


def merge(values: dict[str, Any] = OURS) -> Outcome:
    return on_this_machine(docker.daemon_config, values=values)


def test_our_keys_are_merged_and_all_others_stay(daemon: Path) -> None:
    daemon.write_text(json.dumps(OTHERS))
    daemon.chmod(0o600)

    first, second = merge(), merge()

    assert first.changed
    assert not second.changed
    assert not second.foreseen
    merged = json.loads(daemon.read_text())
    assert merged == {**OTHERS, **OURS, "features": {"containerd-snapshotter": False, "cdi": True}}
    assert list(merged)[:3] == list(OTHERS)
    assert mode(daemon) == 0o600
    assert json.loads(Path(files.backup_of(str(daemon))).read_text()) == OTHERS
    assert "u:p@x" not in first.told


FLUENTD = {"log-driver": "fluentd", "log-opts": {"fluentd-address": "tcp://192.0.2.5:24224", "tag": "rig"}}
LOCAL = {"log-driver": "local", **OURS}


def merge_log_driver() -> Outcome:
    return on_this_machine(docker.daemon_config, values=LOCAL, unless={"log-driver": LOG_KEYS})


@pytest.mark.parametrize(
    ("written", "driver"),
    [
        (FLUENTD, "fluentd"),
        ({"log-driver": "json-file"}, "json-file"),
        # Options of Docker's own default driver.
        ({"log-opts": {"max-size": "10m", "labels": "a"}}, None),
        ({"dns": ["192.0.2.53"]}, "local"),
    ],
)
def test_the_log_driver_of_others_and_its_options_stay(daemon: Path, written: dict[str, Any], driver: str) -> None:
    daemon.write_text(json.dumps(written))

    assert merge_log_driver().changed
    assert not merge_log_driver().changed
    assert json.loads(daemon.read_text()) == {**written, **OURS, **({"log-driver": driver} if driver else {})}


def test_our_own_log_driver_is_repaired_unless_options_of_another_came_with_it(daemon: Path) -> None:
    daemon.write_text("{}")
    merge_log_driver()

    daemon.write_text(json.dumps({**OURS, "log-driver": "json-file"}))
    merge_log_driver()
    assert json.loads(daemon.read_text())["log-driver"] == "local"

    daemon.write_text(json.dumps({**OURS, **FLUENTD}))
    assert not merge_log_driver().changed
    assert json.loads(daemon.read_text()) == {**OURS, **FLUENTD}


def test_another_layout_of_the_same_json_is_left_as_it_is(daemon: Path) -> None:
    daemon.write_text(json.dumps(OURS, indent=1, sort_keys=True))
    before = daemon.read_text()

    assert not merge().changed
    assert daemon.read_text() == before


@pytest.mark.parametrize("text", [None, "", "  \n"])
def test_a_missing_or_empty_file_is_made(daemon_json: Path, text: str | None) -> None:
    if text is not None:
        daemon_json.parent.mkdir()
        daemon_json.write_text(text)

    assert merge().changed
    assert json.loads(daemon_json.read_text()) == OURS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"features": ', "cannot be merged into"),
        ("[]", "not a JSON object"),
        ('{"runtimes": []}', "`runtimes` is []"),
        ('{"runtimes": {"nvidia": {"args": "-x"}}}', '`runtimes.nvidia.args` is "-x", but must be a list'),
        ('{"features": {"cdi": true}, "runtimes": {"nvidia": "x"}}', "`runtimes.nvidia`"),
    ],
)
def test_what_cannot_be_merged_into_is_named_and_left_alone(daemon: Path, text: str, why: str) -> None:
    daemon.write_text(text)

    outcome = merge()

    assert outcome.failed
    assert why in outcome.told
    assert daemon.read_text() == text


MIRRORS = "registry-mirrors"


def test_mirrors_of_others_stay_behind_ours_and_only_ours_make_way_for_another(daemon: Path, room: Path) -> None:
    daemon.write_text(json.dumps({MIRRORS: ["http://theirs"], "data-root": "/mnt"}))

    def mirrors_after(*ours: str) -> list[str]:
        values: dict[str, Any] = {"log-driver": "local"}
        if ours:
            values[MIRRORS] = [*ours]
        merge(values)
        assert not merge(values).changed
        found: list[str] = json.loads(daemon.read_text())[MIRRORS]
        return found

    assert mirrors_after("http://a") == ["http://a", "http://theirs"]
    assert mirrors_after("http://b") == ["http://b", "http://theirs"]
    # One of theirs is not ours for being in the settings too.
    assert mirrors_after("http://theirs") == ["http://theirs"]
    assert mirrors_after() == ["http://theirs"]

    book = ledger.parse((room / "ledger").read_text().splitlines())
    left = ledger.unmerge(json.loads(daemon.read_text()), book.keys[str(daemon)], {MIRRORS: ["http://theirs"]})
    assert left == ledger.Unmerged({MIRRORS: ["http://theirs"], "data-root": "/mnt"})


def test_a_key_that_is_no_longer_asked_for_is_again_what_it_was(daemon: Path, room: Path) -> None:
    daemon.write_text(json.dumps({"debug": True, "mtu": 1400}))
    merge({"mtu": 9000, MIRRORS: ["http://a"]})
    assert merge({"log-driver": "local"}).changed
    assert json.loads(daemon.read_text()) == {"debug": True, "mtu": 1400, "log-driver": "local"}
