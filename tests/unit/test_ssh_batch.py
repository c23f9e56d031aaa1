"""The program that answers for many commands at once, and the memory of what to ask."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rigup.ssh import batch, client, connector, probe, tcp, testinfra_backend, transport
from rigup.ssh.batch import Batch, Command, Result
from rigup.ssh.memory import FORGOTTEN_AFTER, LEFT_OUT_FOR, Memory, memory_file
from rigup.ssh.transport import BadAnswer
from tests.unit.waiting import HANG_S, until

MARK = "0123456789abcdef"


def run(*commands: Command, **environment: str) -> Batch:
    """Run the real program here, as sshd would run it on a host."""
    line, stdin = batch.request(commands, MARK, HANG_S)
    argv, more = ["sh", "-c", line], {**os.environ, **environment}
    done = subprocess.run(argv, input=stdin, capture_output=True, timeout=2 * HANG_S, env=more)
    assert done.stderr == b""
    return batch.parse(done.stdout, commands, MARK)


def one(command: str) -> Result:
    return run(Command(command)).results[Command(command)]


def test_stdout_stderr_and_exit_code_are_kept_apart() -> None:
    assert one("echo out; echo err >&2; exit 3") == Result(3, b"out\n", b"err\n")


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\n\n", b"no newline", b"\x00\xff\xfe binary", f"{MARK} 0 0 3 0\nfoo".encode(), "ü\r\n".encode()],
)
def test_output_comes_back_byte_for_byte_even_where_it_looks_like_a_frame(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(content)
    command = f"cat {tmp_path}/content; cat {tmp_path}/content >&2"
    assert one(command) == Result(0, content, content)


def test_commands_hold_quotes_newlines_and_anything_else() -> None:
    command = 'printf \'%s|\' "it\'s" \'a "b" $HOME `x` \\\\\' "\nline ü"\n# comment'
    assert one(command).stdout == 'it\'s|a "b" $HOME `x` \\\\|\nline ü|'.encode()


def test_a_signal_counts_as_shells_count_it() -> None:
    assert one("kill -9 $$").code == 137


def test_commands_have_an_empty_standard_input() -> None:
    assert one("cat") == Result(0, b"", b"")


@pytest.fixture
def clock(tmp_path: Path) -> dict[str, str]:
    """Environment in which the program's clock stands still until there is a file `up`: then all time is up."""
    (tmp_path / "Clock.pm").write_text(
        "package Clock; my $now = time();\n"
        f"*CORE::GLOBAL::time = sub () {{ $now + (-e '{tmp_path}/up' ? {2 * HANG_S} : 0) }}; 1;\n"
    )
    return {"PERL5OPT": "-MClock", "PERL5LIB": str(tmp_path)}


def test_a_slow_command_is_killed_with_its_children_and_the_others_are_answered(
    tmp_path: Path, clock: dict[str, str]
) -> None:
    # The quick one's process is there until it has been answered.
    waits = "until [ -e quick ]; do sleep 0.02; done; while kill -0 $(cat quick) 2>&-; do sleep 0.02; done"
    slow = Command(f"cd {tmp_path}; sleep 600 & echo $! >child; {waits}; touch up; echo; sleep 600")
    quick = Command(f"echo $$ >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/quick; echo quick")
    done = run(slow, quick, **clock)
    assert done.refused == {slow}
    assert done.results[quick].stdout == b"quick\n"
    until(lambda: not runs(int((tmp_path / "child").read_text())))


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_command_that_closes_its_output_and_runs_on_is_not_waited_for_ever(
    tmp_path: Path, clock: dict[str, str]
) -> None:
    silent = Command(f"touch {tmp_path}/up; exec >&- 2>&-; sleep 600")
    assert run(silent, **clock).refused == {silent}


def test_a_command_that_never_stops_talking_is_left_out() -> None:
    loud = Command("yes")
    done = run(loud, Command("echo calm"))
    assert done.refused == {loud}
    assert len(done.results) == 1


def test_more_commands_than_slots_are_all_answered() -> None:
    commands = [Command(f"sleep 0.0{number % 5}; echo {number}") for number in range(60)]
    done = run(*commands)
    assert [done.results[command].stdout for command in commands] == [f"{number}\n".encode() for number in range(60)]


def test_four_commands_run_at_a_time(tmp_path: Path) -> None:
    """Each of the first four waits for the others and prints how many are running."""
    (tmp_path / "run").mkdir()
    together = f"touch {tmp_path}/$$; until [ $(ls {tmp_path} | wc -l) -gt 4 ]; do sleep 0.02; done"
    commands = [
        Command(f"mkdir {tmp_path}/run/{number}; {together}; ls {tmp_path}/run | wc -l; rmdir {tmp_path}/run/{number}")
        for number in range(8)
    ]
    done = run(*commands)
    counted = [int(done.results[command].stdout) for command in commands]
    assert max(counted) == 4


def test_another_shell_than_sh_is_used_where_a_fact_names_one() -> None:
    command = Command("echo ${BASH_VERSION:+bash}", shell="bash")
    assert run(command).results[command].stdout == b"bash\n"


def test_those_that_need_root_go_through_one_single_sudo(tmp_path: Path) -> None:
    """A sudo that only counts its calls: what it would change besides is not of interest here."""
    sudo = tmp_path / "sudo"
    sudo.write_text(
        f'#!/bin/sh\necho "$*" | head -c 21 >>{tmp_path}/calls\n[ "$1 $2" = "-H -n" ] && shift 2\nexec "$@"\n'
    )
    sudo.chmod(0o755)
    commands = [Command(f"echo {number}", sudo=number % 2 == 0) for number in range(10)]
    done = run(*commands, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert [done.results[command].stdout for command in commands] == [f"{number}\n".encode() for number in range(10)]
    assert (tmp_path / "calls").read_text().count("-H -n /usr/bin/env -i") == 1


def test_answers_of_root_commands_come_as_they_are_ready(tmp_path: Path) -> None:
    """So that a batch that is given up on has given what it had."""
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    sudo.chmod(0o755)
    waits = f"until [ -e {tmp_path}/go ]; do sleep 0.02; done"
    commands = [Command(waits, sudo=True), Command("echo quick", sudo=True), Command("echo plain")]
    command, stdin = batch.request(commands, MARK, HANG_S)
    process = subprocess.Popen(
        ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(stdin)
    process.stdin.close()
    received = b""
    while len((done := batch.parse(received, commands, MARK)).results) < 2:
        received += process.stdout.read1()  # type: ignore[attr-defined]
    assert commands[0] not in done.refused
    (tmp_path / "go").touch()
    received += process.stdout.read()
    assert len(batch.parse(received, commands, MARK).results) == 3
    assert process.wait() == 0


def test_a_sudo_that_wants_a_password_costs_only_its_own_answers(tmp_path: Path) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    elevated = [Command("x" * 1000 + str(number), sudo=True) for number in range(200)]
    done = run(Command("echo plain"), *elevated, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.results == {Command("echo plain"): Result(0, b"plain\n", b"")}


def test_nothing_is_left_on_the_host(tmp_path: Path) -> None:
    command, stdin = batch.request([Command("pwd"), Command("ls -A")], MARK, HANG_S)
    subprocess.run(["sh", "-c", command], input=stdin, capture_output=True, cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_that_was_cut_off_anywhere_gives_only_whole_answers() -> None:
    commands = [Command("first"), Command("second")]
    stream = f"{MARK} 1 0 4 0\nbody{MARK} 0 7 2 3\nooeee".encode()
    whole = batch.parse(stream, commands, MARK)
    assert whole.results == {commands[1]: Result(0, b"body", b""), commands[0]: Result(7, b"oo", b"eee")}
    for end in range(len(stream)):
        for command, answer in batch.parse(stream[:end], commands, MARK).results.items():
            assert whole.results[command] == answer


def test_what_a_login_shell_says_first_is_passed_over() -> None:
    stream = f"Welcome!\n{MARK} 0 0 2 0\nok".encode()
    assert batch.parse(stream, [Command("x")], MARK).results == {Command("x"): Result(0, b"ok", b"")}


def test_an_answer_to_a_question_that_was_not_asked_is_not_believed() -> None:
    with pytest.raises(BadAnswer, match="was not sent"):
        batch.parse(f"{MARK} 5 0 2 0\nok".encode(), [Command("x")], MARK)


def test_perl_base_is_all_the_program_needs() -> None:
    """A bare Debian has perl-base alone: only what it holds may be used."""
    source = batch.program().decode()
    used = {line.split()[1].rstrip(";") for line in source.splitlines() if line.startswith("use ")}
    assert used == {"strict", "warnings", "POSIX"}
    assert shutil.which("perl")


# The memory.


def test_what_was_asked_is_expected_in_its_order(tmp_path: Path) -> None:
    memory = Memory.load(tmp_path / "a/box.json")
    commands = [Command("c"), Command("a", sudo=True), Command("b", shell="bash")]
    for command in [*commands, commands[0]]:
        memory.note_use(command, command.command)
    memory.save()
    assert list(Memory.load(tmp_path / "a/box.json").expected()) == commands
    assert (tmp_path / "a/box.json").stat().st_mode & 0o777 == 0o600


def test_a_run_that_commands_little_does_not_forget_what_a_deploy_commands(tmp_path: Path) -> None:
    path = tmp_path / "box.json"
    for command in (Command("deploy"), Command("one fact")):
        memory = Memory.load(path)
        memory.note_use(command, command.command)
        memory.save()
    assert list(Memory.load(path).expected()) == [Command("one fact"), Command("deploy")]


def test_what_nobody_commands_any_more_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "box.json"
    for command in (Command("old"), *[Command("new")] * FORGOTTEN_AFTER):
        memory = Memory.load(path)
        memory.note_use(command, command.command)
        memory.save()
    assert list(Memory.load(path).expected()) == [Command("new")]


def test_what_was_too_slow_is_left_out_for_some_runs_and_then_tried_again(tmp_path: Path) -> None:
    expected = []
    for run in range(LEFT_OUT_FOR + 2):
        memory = Memory.load(tmp_path / "box.json")
        expected.append(list(memory.expected()))
        memory.note_use(Command("slow"), "slow")
        if run == 0:
            memory.note_slow([Command("slow")])
        memory.save()
    assert expected == [[]] * (LEFT_OUT_FOR + 1) + [[Command("slow")]]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"commands": [{"source": "x"}]}', "[" * 100_000, '{"commands": 3}', "null"]
)
def test_a_damaged_memory_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "box.json").write_text(text)
    assert list(Memory.load(tmp_path / "box.json").expected()) == []


def test_a_memory_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "box.json"
    memory = Memory.load(path)
    memory.note_use(Command("id"), "id")
    memory.save()
    assert Memory.load(path).expected()
    for mode in (0o620, 0o602):
        path.chmod(mode)
        assert not Memory.load(path).expected()


def test_commands_of_audits_are_kept_outside_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/nonexistent")
    monkeypatch.delenv("RIGUP_CACHE", raising=False)
    assert memory_file("rig1", ".audit").is_relative_to("/nonexistent/rigup")
    assert memory_file("rig1", "") == Path(".rigup/facts/rig1.json")


def test_a_run_that_asked_nothing_writes_nothing(tmp_path: Path) -> None:
    Memory.load(tmp_path / "box.json").save()
    assert list(tmp_path.iterdir()) == []


def test_any_host_name_gives_a_file_inside_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGUP_CACHE", str(tmp_path))
    names = ["rig1", "../../etc/passwd", "a/b", "a%2fb", "ü"]
    paths = [memory_file(name, "") for name in names]
    assert all(path.parent == tmp_path for path in paths)
    assert len(set(paths)) == len(names)


def test_the_file_holds_commands_and_no_answers(tmp_path: Path) -> None:
    memory = Memory.load(tmp_path / "box.json")
    memory.note_use(Command("cat /etc/secret"), "cat /etc/secret")
    memory.save()
    assert set(json.loads((tmp_path / "box.json").read_text())["commands"][0]) == {
        "source", "sudo", "shell", "unused", "left_out",
    }  # fmt: skip


def test_a_sealed_memory_is_that_of_one_host(tmp_path: Path) -> None:
    memory = Memory.load(tmp_path / "box.audit.json", key=b"k" * 32)
    memory.note_use(Command("id"), "id")
    memory.save()
    assert Memory.load(tmp_path / "box.audit.json", key=b"k" * 32).expected()
    (tmp_path / "box.audit.json").rename(tmp_path / "other.audit.json")
    assert not Memory.load(tmp_path / "other.audit.json", key=b"k" * 32).expected()


def test_a_host_has_these_limits_of_time_and_size() -> None:
    """Longer ones would keep a run waiting for a hostile host, and shorter ones fail honest hosts that are slow."""
    assert (batch.LIMIT_S, batch.TOTAL_S, batch.CAP_BYTES) == (10, 60, 4_194_304)
    assert (probe.SLOW_S, probe.LIMIT_S) == (5, 120)
    assert (client.COMMAND_S, connector.FACT_S, connector.OPERATION_S) == (600, 600, 21_600)
    assert (connector.STALE_AFTER_S, testinfra_backend.DEEP_S) == (30, 21_600)
    assert (transport.CONNECT_S, transport.KEEPALIVE_S, transport.DEAD_AFTER_MS) == (15, 15, 45_000)
    assert (transport.MAX_BYTES, tcp.ATTEMPT_DELAY_S) == (67_108_864, 0.25)
