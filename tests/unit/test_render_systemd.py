"""Rendering: docker's arguments, the unit and its quoting, the environment file."""

import random
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rigup.errors import RigupError
from rigup.paths import CHECK_ARGS, HOST_PROGRAM
from rigup.plan.model import EndpointPlan
from rigup.render import systemd
from rigup.render.docker import docker_argv
from rigup.render.systemd import env_file_text, systemd_command, systemd_quote, unit_text
from rigup.render.verify import check_args_argv, record_text
from tests.unit.sample import DIGEST, image, plan
from tests.unit.systemd_words import exec_words
from tests.unit.waiting import HANG_S

HOSTILE = [
    "",
    " ",
    "a b",
    "it's",
    '"',
    '{"method": "mtp", "num_speculative_tokens": 1}',
    "$HOME",
    "${HOME}",
    "$$",
    "100%",
    "%n %% %i",
    "\\",
    "\\n",
    "ends in backslash\\",
    "line\nbreak",
    "carriage\rreturn\ttab",
    "\x1b[31m\x7f\x01",
    "Grüße 模型 🦙",
    "-",
    "--",
    "-leading",
    "@at",
    ":colon",
    "+plus",
    "!bang",
    ";",
    "; rm -rf /",
    "# no comment",
    "a;b",
    "*?[x]~",
    "`id` $(id) && || > <",
    "\u0085\u2028",
]


@pytest.mark.parametrize("argument", HOSTILE, ids=repr)
def test_an_argument_arrives_as_it_is(argument: str) -> None:
    assert exec_words(systemd_command(["/bin/x", argument, "last"])) == ["/bin/x", argument, "last"]


def test_any_arguments_arrive_as_they_are() -> None:
    # A seed of its own for each round, so that a failure names the round that shows it.
    alphabet = " \t\n\r\"'\\$%{};#=@:+!-~*ax0é模\x01\x7f"
    for seed in range(3000):
        source = random.Random(seed)
        argv = ["/bin/x"] + [
            "".join(source.choices(alphabet, k=source.randrange(12))) for _ in range(source.randrange(1, 5))
        ]
        assert exec_words(systemd_command(argv)) == argv, seed


def test_a_quoted_argument_never_ends_its_line() -> None:
    for argument in HOSTILE:
        assert len(systemd_quote(argument).splitlines()) <= 1 or "\u2028" in argument
        assert not re.search(r"[\x00-\x1f\x7f]", systemd_quote(argument))


def test_plain_arguments_stay_readable() -> None:
    assert systemd_quote("--tensor-parallel-size=4") == "--tensor-parallel-size=4"
    assert systemd_quote("vllm/vllm-openai@sha256:ab") == "vllm/vllm-openai@sha256:ab"


def test_what_no_argument_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        systemd_quote("a\0b")
    with pytest.raises(UnicodeEncodeError):
        systemd_quote("\udcff")


@pytest.mark.parametrize("argv", [[], ["docker"], ["-/bin/x"], ["@/bin/x"]])
def test_the_program_must_be_an_absolute_path(argv: list[str]) -> None:
    with pytest.raises(ValueError, match="absolute"):
        systemd_command(argv)


def test_the_container_is_what_the_plan_says() -> None:
    endpoint = plan(image(created=datetime(2026, 2, 1, tzinfo=UTC))).endpoint("main")
    argv = docker_argv(endpoint)
    split = argv.index(f"vllm/vllm-openai@{DIGEST}")
    options, arguments = argv[:split], argv[split + 1 :]
    assert options[:2] == ["/usr/bin/docker", "run"]
    for option in (
        "--rm",
        "--init",
        "--name=llm-main",
        "--pull=never",
        "--log-driver=none",
        "--network=host",
        "--ipc=host",
        "--userns=host",
        "--device=nvidia.com/gpu=all",
        "--ulimit=memlock=-1",
        "--ulimit=stack=67108864",
        f"--env-file=/etc/rigup/endpoints/main/{endpoint.generation}/env",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    ):
        assert option in options
    mounts = [option for option in options if option.startswith("--mount=")]
    assert mounts[0].endswith(",target=/model,readonly")
    assert mounts[1].endswith("config.json,target=/model/config.json,readonly")
    assert arguments[0] == "--model=/model"
    # Nothing of the image's environment stands in the command line, and nothing publishes a port.
    assert not any(option.startswith(("-e", "--env=", "-p", "--publish", "--gpus", "--shm-size")) for option in options)


def test_named_gpus_are_handed_over_one_by_one() -> None:
    argv = docker_argv(plan(endpoints={"main": {"gpus": [4, 5, 6, 7]}}).endpoint("main"))
    assert [word for word in argv if word.startswith("--device")] == [
        f"--device=nvidia.com/gpu={n}" for n in (4, 5, 6, 7)
    ]


def settings_of(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    # Not splitlines(): systemd knows no line ends beyond ASCII.
    for line in unit.replace("\\\n", " ").split("\n"):
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_serves_in_the_foreground_and_is_active_once_it_answers() -> None:
    endpoint = plan(ready_timeout=600).endpoint("main")
    found = settings_of(unit_text(endpoint))
    assert found["Type"] == ["exec"]
    assert exec_words(found["ExecStart"][0]) == docker_argv(endpoint)
    wait = exec_words(found["ExecStartPost"][0])
    assert wait[:2] == [HOST_PROGRAM, "wait-ready"]
    assert {"--timeout=600", "--stall=900", "--listener=/run/rigup-engines/main/listener"} <= set(wait)
    # With the end of the unit systemd removes it.
    assert found["RuntimeDirectory"] == ["rigup-engines/main"]
    assert found["TimeoutStartSec"] == ["660"]
    assert found["ExecStartPre"] == ["-/usr/bin/docker rm --force llm-main"]
    assert found["ExecStopPost"] == ["-/usr/bin/docker rm --force llm-main"]
    assert found["ExecStop"] == ["/usr/bin/docker stop -t 60 llm-main"]
    assert found["Wants"] == ["docker.service network-online.target"]
    assert "Requires" not in found
    assert {"nvidia-cdi-refresh.service", "nvidia-persistenced.service", "docker.service"} <= set(
        found["After"][0].split()
    )
    assert (found["Restart"], found["RestartSec"]) == (["on-failure"], ["15"])
    # Four starts that each take all the time they have must still be four starts within the interval.
    assert found["StartLimitBurst"] == ["4"]
    assert int(found["StartLimitIntervalSec"][0]) > 4 * (660 + 15 + 90)
    assert found["SuccessExitStatus"] == ["143"]
    assert found["WantedBy"] == ["multi-user.target"]
    assert found["Generation"] == [endpoint.generation]
    assert (found["CapabilityBoundingSet"], found["NoNewPrivileges"]) == ([""], ["yes"])


def hostile_endpoint() -> EndpointPlan:
    endpoint = plan().endpoint("main")
    return endpoint.model_copy(update={"options": (*endpoint.options, *HOSTILE)})


def test_a_unit_with_hostile_arguments_hands_them_on_unchanged() -> None:
    endpoint = hostile_endpoint()
    assert exec_words(settings_of(unit_text(endpoint))["ExecStart"][0]) == docker_argv(endpoint)


# Before a test has its own ledger, whose path is in some of them.
UNITS = {
    "llm@main.service": unit_text(hostile_endpoint()),
    "model-fetch@a.service": systemd.fetch_unit_text(),
    "rigup-peers.service": systemd.peers_unit_text(),
    "rigup-commit.service": systemd.commit_unit_text(),
    "rigup-gateway@main.service": systemd.gateway_unit_text(),
    "rigup-audit.service": systemd.audit_service_text(),
    "rigup-audit.timer": systemd.audit_timer_text(),
}
# Not installed here; systemd looks at the programs too.
PROGRAMS = ("/usr/bin/docker", HOST_PROGRAM, "/usr/bin/rsync", "/usr/sbin/nft", "/usr/sbin/haproxy")


@pytest.mark.parametrize("name", UNITS)
def test_systemd_itself_finds_nothing_wrong_with_a_unit(tmp_path: Path, name: str) -> None:
    for each, text in UNITS.items():
        for program in PROGRAMS:
            text = text.replace(program, "/bin/true")
        (tmp_path / each).write_text(text, encoding="utf-8")
    try:
        ran = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not installed")
    assert str(tmp_path) not in ran.stderr and name not in ran.stderr


@pytest.mark.parametrize("name", ["model-fetch@a.service", "rigup-peers.service", "rigup-gateway@main.service"])
def test_a_unit_that_talks_to_the_network_is_confined(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(UNITS[name], encoding="utf-8")
    argv = ["systemd-analyze", "security", "--offline=true", "--threshold=35", "--no-pager", str(tmp_path / name)]
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=HANG_S, check=False)
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not installed")
    assert "Overall exposure level" in ran.stdout, ran.stderr
    assert ran.returncode == 0, ran.stdout


def test_the_environment_file_holds_values_as_docker_reads_them() -> None:
    endpoint = plan().endpoint("main").model_copy(update={"env": {"B": 'a "b" $c #d', "A": ""}})
    assert env_file_text(endpoint) == 'A=\nB=a "b" $c #d\n'


def test_a_value_that_the_format_cannot_hold_is_refused() -> None:
    endpoint = plan().endpoint("main").model_copy(update={"env": {"A": "x\nLD_PRELOAD=/evil"}})
    with pytest.raises(RigupError, match=r"env\.A contains a line break"):
        env_file_text(endpoint)


def test_arguments_are_checked_before_the_checkpoint_is_there() -> None:
    patched = {"config.json": "{}", "chat_template.jinja": ""}
    endpoint = plan().endpoint("main").model_copy(update={"patched_files": patched})
    template = f"source={endpoint.directory}/chat_template.jinja,target=/rigup/chat_template.jinja,readonly"
    mounts = [
        word.removeprefix("--mount=type=bind,") for word in check_args_argv(endpoint) if word.startswith("--mount=")
    ]
    assert mounts == [template, f"source={CHECK_ARGS},target={CHECK_ARGS},readonly"]


def test_what_everybody_may_read_and_what_stands_in_process_lists_holds_no_value_of_the_environment() -> None:
    endpoint = plan().endpoint("main").model_copy(update={"env": {"AWS_SECRET_ACCESS_KEY": "planted"}})
    shown = [unit_text(endpoint), record_text(endpoint), *docker_argv(endpoint), *check_args_argv(endpoint)]
    assert [text for text in shown if "planted" in text] == []
    assert "planted" in env_file_text(endpoint)
