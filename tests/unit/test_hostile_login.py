"""Whatever a login has, commands on its host run in one fixed environment: over both connectors, in the audit, and on
the command line."""

from __future__ import annotations

import ast
import os
import pwd
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import testinfra.host

from rigup.config.inventory import Host, load_inventory
from rigup.ssh import environment, testinfra_backend
from rigup.ssh.batch import Command
from rigup.ssh.client import Client, Unreachable
from tests.unit.hostile_login import SHELLS, hostile_login
from tests.unit.loopback_sshd import Sshd, running_sshd

ROOT = Path(__file__).resolve().parents[2]
LOOK = "env | sort; umask; command -v sh"
SEEN = [
    f"HOME={pwd.getpwuid(os.getuid()).pw_dir}",
    "LC_ALL=C.UTF-8",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PIP_CONFIG_FILE=/dev/null",
    "PWD=/",
    "PYTHONNOUSERSITE=1",
    "0022",
    "/usr/bin/sh",
]
# As the login shell gets it; programs of the test, sudo among them, are put before the host's own.
STARTS = "'/usr/bin/env' '-i' 'PATH=/usr/local/sbin:"


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    with hostile_login(tmp_path) as server:
        server.lab(sudo=True)
        monkeypatch.setenv("RIGUP_INVENTORY", server.environment["RIGUP_INVENTORY"])
        monkeypatch.setenv("RIGUP_CACHE", str(tmp_path / "facts"))
        yield server


def box(sshd: Sshd, **connection: object) -> Host:
    sshd.lab(**connection)
    return load_inventory(Path(sshd.environment["RIGUP_INVENTORY"])).host("box")


def seen(folder: Path, text: str) -> list[str]:
    """The lines of LOOK, without the directory that the test puts first on the PATH."""
    return text.replace(f"{folder}/programs:", "").splitlines()


def lines(sshd: Sshd) -> list[str]:
    return (sshd.folder / "lines").read_text().splitlines()


def deploy(sshd: Sshd, text: str, connector: str = "rig", **environment: str) -> subprocess.CompletedProcess[str]:
    (sshd.folder / "deploy.py").write_text(text)
    run = sshd.pyinfra(str(sshd.inventory(connector)), "deploy.py", "-y", **environment)
    assert "Traceback" not in run.stderr, run.stderr
    return run


@pytest.mark.parametrize("shell", SHELLS)
def test_any_login_shell_runs_what_it_is_sent(tmp_path: Path, shell: str) -> None:
    hostile = "printf '%s\\n' \"it's\" 'a \\ !! $HOME `x`' \"\nü\" # comment\nexit 3"
    commands = [Command(LOOK), Command(LOOK, sudo=True), Command(hostile)]
    with hostile_login(tmp_path, shell) as sshd, Client(box(sshd)) as client:
        alone = [client.run(command) for command in commands]
        together = client.run_all(commands)
        assert [together[command] for command in commands] == alone
        for result in alone[:2]:
            assert seen(tmp_path, result.stdout.decode()) == SEEN
        assert (alone[2].code, alone[2].stdout.decode()) == (3, "it's\na \\ !! $HOME `x`\n\nü\n")
        assert [result.stderr for result in alone] == [b"", b"", b""]


@pytest.mark.parametrize("sudo", [False, True], ids=["login", "sudo"])
@pytest.mark.parametrize("connector", ["rig", "ssh"])
def test_a_deploy_sees_nothing_of_the_login(sshd: Sshd, connector: str, sudo: bool) -> None:
    out = sshd.folder / "out"
    text = f"""
from pyinfra import host
from pyinfra.operations import server
from rigup.facts.files import FileInfo
assert host.get_fact(FileInfo, path="/etc/passwd", _sudo={sudo}).kind == "regular file"
server.shell(commands=["({LOOK}) >{out}; echo one; echo two >&2; cat >>{out}"], _sudo={sudo}, _stdin="given")
"""
    run = deploy(sshd, text, connector)
    assert run.returncode == 0, run.stderr
    assert seen(sshd.folder, out.read_text()) == [*SEEN, "given"]
    assert oct(out.stat().st_mode)[-3:] == "644"
    assert all(line.startswith(STARTS) for line in lines(sshd))


@pytest.mark.parametrize("connector", ["rig", "ssh"])
def test_what_an_operation_sets_reaches_its_command(sshd: Sshd, connector: str) -> None:
    out = sshd.folder / "out"
    given = '_env={"http_proxy": "http://p:1"}, _chdir="/tmp"'
    text = f"""
from pyinfra.operations import server
server.shell(commands=["echo $http_proxy $PWD $(umask) >>{out}"], _sudo=True, {given})
server.shell(commands=["echo $http_proxy $PWD $BASH_VERSION >>{out}"], _shell_executable="bash", {given})
"""
    if os.getuid() == 0:
        text += f'server.shell(commands=["echo $http_proxy $PWD $(id -un) >>{out}"], _su_user="root", {given})\n'
    run = deploy(sshd, text, connector)
    assert run.returncode == 0, run.stderr
    found = out.read_text().splitlines()
    assert found[0] == "http://p:1 /tmp 0022"
    assert found[1].startswith("http://p:1 /tmp 5.")
    assert found[2:] == (["http://p:1 /tmp root"] if os.getuid() == 0 else [])


def test_the_first_run_and_the_later_ones_read_facts_past_the_noise(sshd: Sshd) -> None:
    text = """
from pyinfra import host
from rigup.facts.files import FileInfo
for path in ("/etc/passwd", "/etc/group"):
    assert host.get_fact(FileInfo, path=path).kind == "regular file"
"""
    for number, prefetch in ((2, "off"), (1, "on")):
        run = deploy(sshd, text, RIGUP_PREFETCH=prefetch)
        assert run.returncode == 0, run.stderr
        # No more round trips than without all that.
        assert f"remote executions: {number}" in run.stderr


def test_the_decimal_comma_of_a_locale_does_not_reach_a_fact(sshd: Sshd) -> None:
    argv = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(sshd.folder / "locales" / "de_DE.UTF-8")]
    (sshd.folder / "locales").mkdir()
    try:
        subprocess.run(argv, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no localedef with de_DE here (apt-get install locales)")
    german = {"LOCPATH": str(sshd.folder / "locales"), "LC_ALL": "de_DE.UTF-8", "PATH": os.environ["PATH"]}
    comma = subprocess.run(["stat", "-c", "%.6Y", "/"], env=german, capture_output=True, text=True, check=True)
    assert "," in comma.stdout
    text = """
from pyinfra import host
from rigup.facts.units import UnitState
assert host.get_fact(UnitState, unit="x.service", inputs=["/etc/passwd"]).inputs["/etc/passwd"] > 0
"""
    for prefetch in ("off", "on"):
        run = deploy(sshd, text, RIGUP_PREFETCH=prefetch)
        assert run.returncode == 0 and "unexpected" not in run.stderr, run.stderr


def test_the_audit_and_its_next_run_see_nothing_of_the_login(sshd: Sshd) -> None:
    for _ in range(2):
        testinfra_backend.session.cache_clear()
        testinfra_backend.inventory.cache_clear()
        found = testinfra.host.Host(testinfra_backend.RigBackend("box")).run(LOOK)
        assert (seen(sshd.folder, found.stdout), found.stderr) == (SEEN, "")
        testinfra_backend.close_all()
    testinfra_backend.inventory.cache_clear()


def test_pip_reads_no_configuration_of_the_host(sshd: Sshd) -> None:
    """`[install] user = true` in a configuration file of the whole host: here that of a virtual environment."""
    made = sshd.folder / "made"
    with Client(box(sshd, sudo=False)) as client:
        assert client.run(Command(f"python3 -m venv {made}")).code == 0
        (made / "pip.conf").write_text("[install]\nuser = true\n")
        found = client.run(Command(f"{made}/bin/pip install --quiet --no-index nothing-of-that-name"))
    assert b"No matching distribution" in found.stderr and b"--user" not in found.stderr
    assert {oct(path.stat().st_mode)[-3:] for path in (made, made / "bin", made / "bin/pip")} == {"755"}


NOLOGIN = "ForceCommand echo This account is currently not available.\n"


def test_a_login_that_runs_nothing_is_named_with_what_it_printed(tmp_path: Path) -> None:
    says = "the login of root runs no commands: This account is currently not available."
    with running_sshd(tmp_path, NOLOGIN) as sshd:
        with pytest.raises(Unreachable, match=says):
            Client(box(sshd))
        run = deploy(sshd, "from pyinfra.operations import server\nserver.shell(commands=['true'])\n")
    assert run.returncode == 1
    assert says in run.stderr


# Every place


def functions(*packages: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in sorted(each for package in packages for each in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def those_that(contain: Callable[[ast.AST], bool]) -> dict[str, str]:
    """The source of the functions that contain such a node, by path and name."""
    found = [(name, node) for name, node in functions("rigup", "tasks") if any(map(contain, ast.walk(node)))]
    return {name: ast.unparse(node) for name, node in found}


def has_word(node: ast.AST, *words: str) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and {*node.value.split()} >= {*words}


def test_every_command_that_is_sent_to_a_login_shell_is_in_the_environment() -> None:
    def sends(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "exec_command"

    senders = those_that(sends)
    assert {*senders} == {
        "rigup/ssh/batch.py:send",
        "rigup/ssh/client.py:_start",
        "rigup/ssh/probe.py:_start",
        "rigup/ssh/pyinfra_ssh.py:start",
    }
    assert all(".exec_command(environment.login_line(" in source for source in senders.values())


def test_every_sudo_and_every_unit_starts_its_command_in_the_environment() -> None:
    # With its option -H sudo is the word of a command. pyinfra's is seen above, where deploys use it.
    elevating = those_that(lambda node: isinstance(node, ast.Constant) and node.value == "-H")
    assert {*elevating} == {"rigup/ssh/client.py:_start"}
    assert all("environment.CLEAN" in source for source in elevating.values())
    batch = (ROOT / "rigup/ssh/batch.pl").read_text()
    assert batch.count("'sudo'") == batch.count("'sudo', '-H', '-n', @clean,") == 1
    units = those_that(lambda node: has_word(node, "systemd-run"))
    # This one has the environment of the engine itself, from a file.
    engine = units.pop("rigup/render/verify.py:_confined")
    assert "EnvironmentFile=" in engine
    assert units and all("environment.words(" in source for source in units.values()), units
    templates = "".join(path.read_text() for path in (ROOT / "templates").glob("*.j2"))
    assert "/etc/environment" not in templates


def test_the_words_for_a_login_shell_mean_the_same_in_every_shell() -> None:
    line = environment.login_line("".join(map(chr, range(1, 256))) + "€'\"!\\\n" * 1000, "mark")
    assert not {*line} & {*map(chr, range(32)), *map(chr, range(127, 256)), "!", "\\"}
    # Each word is between single quotes, and short enough for csh.
    assert max(len(word) for word in line.split("'")) <= 900
    assert all(gap in ("", " ") for gap in line.split("'")[::2])
