"""The lock file: stable text, whole or not at all."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from rigup.errors import InputError, RigupError
from rigup.lock.lockfile import CheckpointLock, ImageLock, KeyLock, Lock, read, write

FULL = Lock(
    images={
        "vllm/vllm-openai:cu130-nightly": ImageLock(
            digest="sha256:" + "a" * 64,
            created=datetime(2026, 2, 25, 3, 4, 5, tzinfo=UTC),
            bytes=9_000_000_000,
            cuda="13.0.1",
        )
    },
    checkpoints={"acme/tiny@main": CheckpointLock(revision="b" * 40, bytes=123, files=7)},
    packages={"debian13": {"driver-595": {"nvidia-driver-cuda": "595.71.05-1"}, "docker": {"docker-ce": "5:29.6.1-1"}}},
    keys={"http://mirror/gpg": KeyLock(sha256="c" * 64, fingerprints=("D" * 40,))},
)


def test_an_absent_lock_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "lab.lock") == Lock()


def test_an_empty_file_is_an_empty_lock(tmp_path: Path) -> None:
    path = tmp_path / "lab.lock"
    path.write_text("# nothing yet\n")
    assert read(path) == Lock()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "lab.lock"
    assert write(path, FULL) is True
    assert read(path) == FULL
    assert write(path, FULL) is False


def test_the_text_is_sorted_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lab.lock"
    write(path, FULL)
    text = path.read_text()
    assert text.startswith("# Written by rigup")
    assert text.index("checkpoints:") < text.index("images:") < text.index("keys:") < text.index("packages:")
    assert "created: '2026-02-25T03:04:05Z'" in text


def test_the_order_of_entries_and_the_time_zone_do_not_change_the_text(tmp_path: Path) -> None:
    image = FULL.images["vllm/vllm-openai:cu130-nightly"]
    tokyo = image.created.astimezone(timezone(timedelta(hours=9)))
    elsewhere = ImageLock.model_validate({**image.model_dump(), "created": tokyo})
    write(tmp_path / "a.lock", Lock(images={"z:1": image, "a:1": image}))
    write(tmp_path / "b.lock", Lock(images={"a:1": elsewhere, "z:1": elsewhere}))
    assert (tmp_path / "a.lock").read_text() == (tmp_path / "b.lock").read_text()


def test_writing_leaves_nothing_beside_and_everyone_may_read(tmp_path: Path) -> None:
    path = tmp_path / "lab.lock"
    write(path, FULL)
    assert [entry.name for entry in tmp_path.iterdir()] == ["lab.lock"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_lock_that_cannot_be_written_says_so_and_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(RigupError, match="the lock cannot be written"):
        write(tmp_path / "missing" / "lab.lock", FULL)
    blocked = tmp_path / "lab.lock"
    blocked.mkdir()
    with pytest.raises((RigupError, IsADirectoryError)):
        write(blocked, FULL)
    assert [entry.name for entry in tmp_path.iterdir()] == ["lab.lock"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("images:\n  a:1:\n", "lab.lock:"),
        ("image: {}\n", "lab.lock:1: image: unknown key: did you mean images?"),
        (
            "checkpoints:\n  a/b@main: {revision: main, bytes: 1, files: 1}\n",
            "lab.lock:2: checkpoints.a/b@main.revision",
        ),
        ("keys:\n  http://x: {sha256: abc, fingerprints: [x]}\n", "'abc' is not a sha256: remove this entry"),
        ("packages: {debian13: {docker: {docker-ce: newest}}}\n", "'newest' is not an apt version"),
    ],
)
def test_a_damaged_lock_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "lab.lock"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read(path)
    assert words in str(caught.value)


def test_merging_keeps_what_is_there_and_takes_what_is_new() -> None:
    newer = Lock(
        packages={"debian13": {"docker": {"docker-ce": "5:29.7.2-1"}}, "debian12": {"docker": {"docker-ce": "5:1"}}}
    )
    merged = FULL.merged(newer)
    assert merged.images == FULL.images
    assert merged.versions("debian13", "driver-595") == {"nvidia-driver-cuda": "595.71.05-1"}
    assert merged.versions("debian13", "docker") == {"docker-ce": "5:29.7.2-1"}
    assert merged.versions("debian12", "docker") == {"docker-ce": "5:1"}
    # The one it was made from stays as it was.
    assert FULL.versions("debian13", "docker") == {"docker-ce": "5:29.6.1-1"}


def test_a_group_that_was_never_resolved_says_what_to_run() -> None:
    with pytest.raises(RigupError, match="the lock has no toolkit for debian13: run `rigup lock`"):
        FULL.versions("debian13", "toolkit")
