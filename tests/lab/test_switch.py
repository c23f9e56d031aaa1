"""Switch what a host serves, and roll back from everything that can be wrong with a recipe.

A stand-in engine serves here, which starts in a second and misbehaves on request. The tests build on each other, in
file order: each leaves a host that serves `standin-a` as `main`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.lab.rigs import Result
from tests.lab.standin import PLANTED, UNIT, Rig, bare

NAME = "rig10"

# What is said about each fault, and settings under which it shows soon.
FAULTS = {
    "standin-never-healthy": (
        r"did not come up: not ready after \d+ s, the time limit: http://127.0.0.1:8000/health answered 503",
        {"ready_timeout": 20},
    ),
    "standin-dies-at-load": (r"did not come up: not ready after \d s: .* has ended", {}),
    "standin-stalls": (r"did not come up: not ready after .*the start has stalled: ", {"stall_timeout": 10}),
    "standin-dies-at-first-request": (r"came up but failed its verification: .*EngineCore encountered an issue", {}),
    "standin-no-streamed-tools": (r"came up but failed its verification: endpoint streams a tool call: ", {}),
}
# The known cause or symptom that its log or its verification shows, or what a complaint is said to mean.
DIAGNOSES = {
    "standin-never-healthy": None,
    "standin-dies-at-load": r"Known cause: .*\(router-read-as-fp4\)",
    "standin-stalls": r"Known cause: .*\(nccl-deadlock\)",
    "standin-dies-at-first-request": r"Symptom, not a cause: .*\(engine-died\)",
    "standin-no-streamed-tools": r"This means: OpenCode and other agents stream, and receive broken JSON",
}
LAST_WORDS = {
    "standin-dies-at-load": "Tried to load weights of size torch.Size([512, 4096])",
    "standin-stalls": "vLLM is using nccl==2.28.3",
}


@pytest.fixture(scope="module")
def rig(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with bare(NAME, tmp_path_factory, login="root") as rig:
        result = rig.deploy()
        assert result.code == 0, result.output
        yield rig


def test_a_switch_forth_and_back_stops_serving_only_while_the_engine_loads(rig: Rig) -> None:
    for recipe in ("standin-b", "standin-a"):
        result = rig.deploy("--data", f"recipe={recipe}")
        assert result.code == 0, result.output
        assert rig.serves() == recipe
        told = re.search(rf"main serves {recipe}; nothing answered for (\d+) s", result.output)
        assert told, result.output
        assert int(told[1]) < 30
        (switched,) = [each for each in result.report["operations"] if "downtime_s" in each]
        assert (switched["step"], round(switched["downtime_s"])) == ("serve", int(told[1]))
        rig.is_whole()
        assert len(rig.shell("ls /etc/rigup/endpoints/main").split()) == 1
    result = rig.deploy()
    assert result.changed() == []


@pytest.mark.parametrize("recipe", FAULTS)
def test_a_recipe_that_fails_is_rolled_back(rig: Rig, recipe: str) -> None:
    why, settings = FAULTS[recipe]
    result = rig.deploy(recipe=recipe, **settings)
    assert result.code == 1, result.output
    assert re.search(rf"{recipe} as main {why}", result.output), result.output
    assert "the previous generation serves again and is verified. Nothing answered for" in result.output
    assert LAST_WORDS.get(recipe, "") in result.output
    if (diagnosis := DIAGNOSES[recipe]) is not None:
        assert re.search(diagnosis, result.output), result.output
    assert ("Known cause: " in result.output) == ("Known cause" in (diagnosis or ""))
    assert rig.serves() == "standin-a"
    rig.is_whole()


def test_a_failed_recipe_is_not_tried_again_unless_requested(rig: Rig) -> None:
    before = rig.invocation()
    result = rig.deploy(recipe="standin-dies-at-load")
    assert result.code == 1
    assert "standin-dies-at-load as main was tried here at" in " ".join(result.output.split())
    assert "nothing was changed" in result.output
    assert rig.invocation() == before
    result = rig.deploy("--data", "retry=true", recipe="standin-dies-at-load")
    assert "rolling back main" in result.output
    assert rig.serves() == "standin-a"
    assert rig.deploy().code == 0


def test_a_power_cut_during_a_trial_boots_what_served_before(rig: Rig) -> None:
    def cut() -> None:
        rig.shell("until systemctl show llm@main | grep -q '^FragmentPath=/run/'; do sleep 0.1; done")
        rig.host.kill()

    meanwhile(lambda: rig.deploy(recipe="standin-slow"), cut)
    rig.shell(f"for i in {{1..300}}; do systemctl is-active -q {UNIT} && exit; sleep 0.2; done; exit 1")
    assert rig.serves() == "standin-a"
    rig.is_whole()
    result = rig.deploy(recipe="standin-slow")
    assert result.code == 0, result.output
    assert rig.serves() == "standin-slow"
    assert rig.deploy().code == 0


# What a deploy prints at each of its steps on the way from one recipe to another.
STEPS = [
    r"config \| Write the environment file of main",
    r"config \| Write the unit of main",
    r"serve \| Check the arguments",
    r"serve \| Serve ",
    r"stopping main",
    r"starting standin",
    r"ok +endpoint is healthy",
    r"main serves standin",
    r"serve \| Remove the files",
    r"verify \| Verify",
]


def killed_at(rig: Rig, steps: list[str], delays: tuple[float, ...]) -> None:
    recipes = ["standin-b", "standin-a"]
    for step in steps:
        for delay in delays:
            rig.rigs.write(recipe=recipes[0])
            rig.rigs.deploy_killed_at(step, delay=delay)
            rig.settled()
            assert rig.serves() in recipes, step
            rig.is_whole()
            result = rig.deploy(recipe=recipes[0])
            assert result.code == 0, (step, result.output)
            assert rig.serves() == recipes[0], (step, result.output)
            rig.is_whole()
            recipes.reverse()
    assert rig.deploy().code == 0


def test_a_deploy_killed_in_the_middle_of_a_switch_ends_in_the_old_or_the_new_state(rig: Rig) -> None:
    killed_at(rig, [STEPS[1], STEPS[4], STEPS[6]], (0,))


@pytest.mark.soak
def test_a_deploy_killed_at_every_step_of_a_switch_ends_in_the_old_or_the_new_state(rig: Rig) -> None:
    killed_at(rig, STEPS, (0, 0.3, 1.5))


def test_a_switch_that_is_killed_itself_goes_on(rig: Rig) -> None:
    def kill() -> None:
        rig.shell("until systemctl show llm@main | grep -q '^FragmentPath=/run/'; do sleep 0.1; done")
        rig.shell("systemctl kill --signal=KILL rigup-switch.service")

    result = meanwhile(lambda: rig.deploy(recipe="standin-slow"), kill)
    assert result.code == 0, result.output
    assert rig.serves() == "standin-slow"
    rig.is_whole()
    assert rig.deploy().code == 0
    # It still knows what served before.
    result = meanwhile(lambda: rig.deploy(recipe="standin-dies-late"), kill)
    assert result.code == 1, result.output
    assert "standin-dies-late as main did not come up" in result.output
    assert "the previous generation serves again and is verified." in result.output
    assert rig.serves() == "standin-a"
    rig.is_whole()
    assert rig.deploy().code == 0


STREAM = """
import json, os, urllib.request
asked = {"model": "Qwen3.5-397B-A17B", "stream": True}
asked["messages"] = [{"role": "user", "content": "Count from 1 to 100000"}]
request = urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", json.dumps(asked).encode())
words = []
for line in urllib.request.urlopen(request, timeout=300):
    if b'"content"' in line:
        words.append(json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"]["content"])
        open("/run/streams", "w").close()
    if os.path.exists("/run/enough"):
        break
# The first event has an empty content.
print("".join(words[1:]).rstrip(", ") == ", ".join(map(str, range(1, len(words)))))
"""


def test_a_deploy_with_nothing_to_do_does_not_disturb_a_request(rig: Rig) -> None:
    before = rig.invocation()
    seen: list[str] = []

    def stream() -> None:
        seen.append(rig.host.shell("python3 -", stdin=STREAM).stdout.strip())

    thread = threading.Thread(target=stream)
    thread.start()
    rig.shell("until [ -e /run/streams ]; do sleep 0.1; done")
    result = rig.deploy()
    rig.shell("touch /run/enough")
    thread.join()
    assert result.changed() == []
    assert seen == ["True"]
    assert rig.invocation() == before


HALVES = {
    "left": {"recipe": "standin-half", "gpus": [0, 1], "port": 8000},
    "right": {"recipe": "standin-half", "gpus": [2, 3], "port": 8001},
}


def test_one_endpoint_is_split_in_two_and_rejoined_and_a_failing_half_is_rolled_back(rig: Rig) -> None:
    broken = {**HALVES, "right": {**HALVES["right"], "recipe": "standin-half-broken"}}
    result = rig.deploy(endpoints=broken)
    assert result.code == 1, result.output
    assert "standin-half-broken as right did not come up" in result.output
    assert rig.serves() == "standin-a"
    assert rig.shell("ls /usr/local/lib/systemd/system /run/systemd/system | grep -c llm@ || true") == "1"

    result = rig.deploy(endpoints=HALVES)
    assert result.code == 0, result.output
    assert (rig.serves("left"), rig.serves("right")) == ("standin-half", "standin-half")
    seen = rig.shell("docker exec llm-right nvidia-smi -L")
    assert len(seen.splitlines()) == 2
    for gone in ("/usr/local/lib/systemd/system/llm@main.service", "/etc/rigup/endpoints/main"):
        assert rig.shell(f"ls {gone} 2>/dev/null || true") == ""
    assert rig.shell("systemctl list-units --all --plain --no-legend 'llm@main*'") == ""
    assert rig.deploy(endpoints=HALVES).changed() == []

    # One of two is switched on its own: the other keeps serving.
    before = rig.invocation("llm@left.service")
    result = rig.deploy(endpoints={**HALVES, "right": {**HALVES["right"], "port": 8002}})
    assert result.code == 0, result.output
    assert rig.invocation("llm@left.service") == before

    assert rig.deploy().code == 0
    assert rig.serves() == "standin-a"
    rig.is_whole()


def test_a_power_cut_while_verified_units_are_committed_boots_them(rig: Rig) -> None:
    def cut() -> None:
        decided = "until test -e /var/lib/rigup/commit.json; do :; done"
        rig.shell(f"{decided}; systemctl kill --signal=STOP rigup-switch.service")
        assert rig.shell("systemctl is-enabled llm@left llm@right || true").split() != ["enabled", "enabled"]
        rig.host.kill()

    meanwhile(lambda: rig.deploy(endpoints=HALVES), cut)
    # Of several units `is-active` is content with one.
    for name in ("left", "right"):
        rig.shell(f"for i in {{1..300}}; do systemctl is-active -q llm@{name} && exit; sleep 0.2; done; exit 1")
    assert (rig.serves("left"), rig.serves("right")) == ("standin-half", "standin-half")
    assert rig.shell("ls /var/lib/rigup/commit.json 2>/dev/null || true") == ""
    assert set(rig.shell("docker ps --format '{{.Names}}'").split()) == {"llm-left", "llm-right"}
    assert rig.shell("systemctl list-units --all --plain --no-legend 'llm@main*'") == ""
    assert rig.deploy(endpoints=HALVES).code == 0
    assert rig.deploy().code == 0
    assert rig.serves() == "standin-a"
    rig.is_whole()


def test_a_trial_that_was_given_up_half_way_leaves_nothing_behind(rig: Rig) -> None:
    def give_up() -> None:
        rig.shell("until systemctl show llm@right | grep -q '^FragmentPath=/run/'; do sleep 0.1; done")
        rig.shell("systemctl stop rigup-switch.service")

    result = meanwhile(lambda: rig.deploy(endpoints=HALVES), give_up)
    assert result.code == 1, result.output
    result = rig.deploy()
    assert result.code == 0, result.output
    assert rig.serves() == "standin-a"
    rig.is_whole()
    assert rig.shell("docker ps --format '{{.Names}}'") == "llm-main"
    assert rig.shell("systemctl list-units --all --plain --no-legend 'llm@*' | wc -l") == "1"
    assert rig.deploy().changed() == []


def test_only_root_can_read_a_secret_of_a_recipes_environment(rig: Rig) -> None:
    deployed = rig.deploy(recipe="standin-secret")
    assert deployed.code == 0, deployed.output
    assert rig.serves() == "standin-secret"
    said = [deployed.output, json.dumps(deployed.report)]
    for command in (("audit",), ("plan", "--json"), ("report",), ("status", "--json")):
        said.append(rig.rigs.run("rigup", *command).output)
    # A diff of it is not shown either.
    rig.shell("sed -i s/^AWS_SECRET_ACCESS_KEY=./AWS_SECRET_ACCESS_KEY=x/ /etc/rigup/endpoints/main/*/env")
    audited = rig.rigs.run("rigup", "audit", "--step", "config")
    assert (audited.code, "AWS_SECRET_ACCESS_KEY" in audited.output) == (2, True), audited.output
    said.append(audited.output)
    assert [text for text in said if PLANTED[1:] in text] == []
    # It comes by standard input, so that the search does not find itself.
    search = """read -r key; hits() { grep -aFs "$@" -f <(printf '%s\\n' "${key:1}"); }
        journalctl --no-pager | hits -c; hits -hc - < <(cat /proc/*/cmdline)
        runuser -u nobody -- grep -ralFs -e "${key:1}" /etc /run /var /tmp /usr/local /home"""
    journal, processes, *files = rig.host.shell(search, stdin=f"{PLANTED}\n", check=False).stdout.split()
    assert (journal, processes, files) == ("0", "0", [])
    assert rig.shell("stat -c %a /etc/rigup/plan.json") == "600"
    assert rig.deploy().code == 0
    assert rig.serves() == "standin-a"


def test_the_container_has_no_privileges_and_the_journal_has_its_log_once(rig: Rig) -> None:
    seen = json.loads(rig.shell("docker container inspect llm-main"))[0]
    assert seen["HostConfig"]["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in seen["HostConfig"]["SecurityOpt"]
    status = rig.shell(
        "grep -E '^(Cap(Prm|Eff|Bnd)|NoNewPrivs)' /proc/$(docker inspect -f '{{.State.Pid}}' llm-main)/status"
    )
    assert set(status.split()[1::2]) == {"0000000000000000", "1"}
    assert all(not mount["RW"] for mount in seen["Mounts"])
    lines = rig.shell(f"journalctl --output=cat _SYSTEMD_INVOCATION_ID={rig.invocation()}").splitlines()
    assert sum("Starting vLLM server" in line for line in lines) == 1
    assert rig.shell("journalctl --quiet --output=cat CONTAINER_NAME=llm-main") == ""


def test_a_crash_loop_ends(rig: Rig) -> None:
    for _ in range(5):
        rig.shell(f"systemctl stop {UNIT}; systemctl start {UNIT} || true")
    assert rig.shell(f"systemctl show --value --property=Result {UNIT}") == "start-limit-hit"
    result = rig.deploy()
    assert result.code == 0, result.output
    assert rig.serves() == "standin-a"


def meanwhile(work: Callable[[], Result], other: Callable[[], None]) -> Result:
    """Do `other` while `work` is being done; returns what the work came to."""
    found: list[Result] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    try:
        other()
    finally:
        thread.join()
    return found[0]
