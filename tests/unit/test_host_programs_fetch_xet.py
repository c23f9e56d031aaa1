"""rigup-host fetch with the hub's real client and its xet part, against a hub that stores by xet as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub.repository import Repository
from tests.unit.store_world import SHARD_BYTES, SHARDS, STALL_S, TOKEN, Rig, hub_of
from tests.unit.waiting import HANG_S, until

pytest_plugins = ("tests.unit.store_world_plugin",)

FIRST, SECOND, THIRD = SHARDS


@pytest.fixture
def rig(repository: Repository, tmp_path: Path) -> Iterator[Rig]:
    with hub_of(repository, tmp_path / "hub", gated=True, xet=True) as hub:
        yield Rig(tmp_path / "rig1", hub)


def fetched(rig: Rig) -> str:
    result = rig.fetch(token_for="127.0.0.1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert rig.is_as_published() and rig.is_clean()
    assert TOKEN not in result.stdout + result.stderr
    return result.stdout


def test_a_mirror_that_hands_on_the_way_to_xet_is_taken_at_its_own_word_alone(rig: Rig, tmp_path: Path) -> None:
    with hub_of(rig.hub.repository, tmp_path / "mirror", xet=True) as mirror:
        result = rig.fetch(hubs=[mirror.url, rig.hub.url])

    assert result.returncode == 0, result.stdout + result.stderr
    assert rig.is_as_published()
    assert [mirror.sent(shard) for shard in SHARDS] == [SHARD_BYTES] * 3
    assert not any(line["about"].startswith(("xet:", "/cas")) for line in mirror.journal)


def over_xet(rig: Rig, path: str) -> int:
    return rig.hub.sent(f"xet:{path}")


def test_a_checkpoint_arrives_over_xet_and_the_storage_service_does_not_see_the_hubs_token(rig: Rig) -> None:
    said = fetched(rig)

    assert "xet:" not in said
    for shard in SHARDS:
        assert rig.hub.sent(shard) == 0
        assert SHARD_BYTES < over_xet(rig, shard) < 1.01 * SHARD_BYTES
    # It answers 401 to any token but its own.
    assert {line["status"] for line in rig.hub.journal if line["about"] == "/cas"} == {200}
    assert not any(line["authorized"] for line in rig.hub.journal if line["about"].startswith("xet:"))


BAD_DAYS = {
    "the hub gives no token for its storage": ("403,path=/api", "xet: "),
    "its storage refuses": ("403,path=/cas", "xet: "),
}


@pytest.mark.parametrize("name", BAD_DAYS)
def test_where_xet_fails_the_rest_comes_over_plain_http(rig: Rig, name: str) -> None:
    rule, why = BAD_DAYS[name]
    rig.hub.err(rule)

    said = fetched(rig)

    assert why in said
    assert 0 < rig.hub.sent(SECOND) <= SHARD_BYTES


# As when signed URLs have run out, the client asks for new ones again and again; or it waits.
@pytest.mark.parametrize("rule", ["403,path=xet:*", f"stall,path=xet:{SECOND}"])
def test_where_xet_brings_no_byte_any_more_the_rest_comes_over_plain_http(rig: Rig, rule: str) -> None:
    rig.hub.err(rule)
    rig.options = (f"--stall={STALL_S}", f"--pause={STALL_S}")
    with rig.fetching("127.0.0.1") as process:
        until(lambda: any(line["about"] == "/cas" for line in rig.hub.journal_so_far), lambda: process.poll() is None)
        until(lambda: rig.later(STALL_S / 10) or rig.told().get("step") == "waiting before the next try")
        rig.later(STALL_S)
        said = process.communicate(timeout=HANG_S)[0]

    assert process.returncode == 0, said
    assert f"no byte for {STALL_S} s" in said
    assert rig.is_as_published()
    assert 0 < rig.hub.sent(SECOND) <= SHARD_BYTES


def test_connections_that_stall_are_replaced_while_the_others_go_on_and_are_no_reason_against_xet(rig: Rig) -> None:
    rig.hub.err("stall,path=xet:*,times=2")
    rig.options = ("--timeout=1",)

    said = fetched(rig)

    assert "no byte for" not in said
    assert [rig.hub.sent(shard) for shard in SHARDS] == [0, 0, 0]


@pytest.mark.parametrize("rule", [f"503,path={FIRST},times=1", f"429,path={FIRST},times=1"])
def test_a_hub_that_is_busy_for_a_moment_is_no_reason_against_xet(rig: Rig, rule: str) -> None:
    rig.hub.err(rule)

    said = fetched(rig)

    assert f"the hub answered {rule[:3]}; next try in" in said
    assert rig.hub.sent(FIRST) == 0 and over_xet(rig, FIRST) >= SHARD_BYTES


def test_a_flipped_byte_in_a_chunk_is_noticed_and_that_file_fetched_again_alone(rig: Rig) -> None:
    rig.hub.err(f"flip,path=xet:{FIRST},times=1")

    said = fetched(rig)

    assert f"{FIRST} from 127.0.0.1" in said
    assert rig.hub.sent(FIRST) == SHARD_BYTES
    assert over_xet(rig, SECOND) + over_xet(rig, THIRD) < 2.02 * SHARD_BYTES


def test_what_xet_keeps_in_memory_is_neither_a_stall_nor_missing_from_the_progress(rig: Rig) -> None:
    rig.options = (f"--stall={STALL_S}",)
    rig.hub.tap.close_after(0)

    def done() -> int:
        return int(rig.told().get("bytes_done", 0))

    with rig.fetching("127.0.0.1") as process:
        # However many answers come at the same time: each round brings some more of each, and none is whole.
        for count in (100_000, 200_000, 300_000):
            before = done()
            rig.hub.tap.close_after(count)
            until(lambda before=before: done() > max(before, 100_000), lambda: process.poll() is None)
            rig.later(0.6 * STALL_S)
        # For longer than a stall may last nothing was written, but the small files.
        assert rig.arrived() < 100_000
        rig.hub.tap.open()
        said = process.communicate(timeout=HANG_S)[0]

    assert process.returncode == 0, said
    assert "no byte for" not in said
    assert rig.hub.sent(FIRST) == 0
