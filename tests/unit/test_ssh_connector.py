"""The connector through its front door: pyinfra against a real sshd."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_sshd import PYINFRA, Sshd, programs_first, running_sshd

from rigup.ssh import transport
from tests.unit.waiting import HANG_S, until

DEPLOY = """
from io import StringIO
from pyinfra import host
from pyinfra.operations import files
for i in host.loop(range(4)):
    files.directory(name=f"directory {{i}}", path=f"{root}/d{{i}}", mode="750")
    files.put(name=f"file {{i}}", src=StringIO(f"content {{i}}\\n"), dest=f"{root}/d{{i}}/file", mode="640")
files.line(name="line", path=f"{root}/d0/lines", line="one line")
"""


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with running_sshd(tmp_path) as server:
        yield server


@pytest.fixture
def root(sshd: Sshd) -> Path:
    """The folder that deploys write into."""
    folder = sshd.folder / "root"
    folder.mkdir()
    return folder


def write_deploy(sshd: Sshd, text: str, name: str = "deploy.py") -> str:
    (sshd.folder / name).write_text(text)
    return name


def executions(stderr: str) -> int:
    found = re.search(r"remote executions: (\d+)", stderr)
    assert found, stderr
    return int(found[1])


def changed(stderr: str) -> dict[str, str]:
    """Operation name -> what pyinfra said about it, from its console output."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stderr)
    return dict(re.findall(r"--> Starting operation: (.+?) *\n.*?\] +(Success|No changes|Error)", plain))


def converge(sshd: Sshd, inventory: str, deploy: str) -> None:
    """Run twice: what is read on a bare host and on a converged one differs, and both are learnt."""
    for _ in range(2):
        run = sshd.pyinfra(inventory, deploy, "-y")
        assert run.returncode == 0, run.stderr


def test_a_run_on_a_converged_host_changes_nothing_in_one_remote_execution(sshd: Sshd, root: Path) -> None:
    inventory, deploy = str(sshd.inventory()), write_deploy(sshd, DEPLOY.format(root=root))

    first = sshd.pyinfra(inventory, deploy, "-y")
    assert first.returncode == 0, first.stderr
    assert executions(first.stderr) > 15

    second = sshd.pyinfra(inventory, deploy, "-y")
    assert set(changed(second.stderr).values()) == {"No changes"}
    assert executions(second.stderr) < 10

    third = sshd.pyinfra(inventory, deploy, "-y")
    assert set(changed(third.stderr).values()) == {"No changes"}
    assert executions(third.stderr) == 1


def test_a_plan_and_a_confirmed_run_need_one_remote_execution_too(sshd: Sshd, root: Path) -> None:
    inventory, deploy = str(sshd.inventory()), write_deploy(sshd, DEPLOY.format(root=root))
    converge(sshd, inventory, deploy)

    for arguments in (["--dry"], [], ["--dry", "-y"]):
        run = sshd.pyinfra(inventory, deploy, *arguments)
        assert run.returncode == 0, run.stderr
        assert executions(run.stderr) == 1, (arguments, run.stderr)


def test_facts_that_need_sudo_are_read_ahead_too(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sudo").write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    (programs / "sudo").chmod(0o755)
    text = """
from pyinfra import host
from pyinfra.facts.files import File
for path in ("/etc", "/usr", "/var"):
    host.get_fact(File, path=path, _sudo=True)
"""
    with running_sshd(tmp_path, programs_first(programs)) as sshd:
        inventory, deploy = str(sshd.inventory()), write_deploy(sshd, text)
        counts = []
        for _ in range(2):
            run = sshd.pyinfra(inventory, deploy, "-y")
            assert run.returncode == 0, run.stderr
            counts.append(executions(run.stderr))
    assert counts[0] > counts[1] == 1


def test_the_host_answers_while_the_deploy_is_still_being_read(sshd: Sshd, root: Path) -> None:
    text = f"""
import os, sys, time
from pyinfra import host
from pyinfra.facts.files import FileContents
# Nothing else has its turn here until the first fact.
until = time.monotonic() + {HANG_S}
while "ahead" in sys.argv[1]:
    try:
        # Can be opened once somebody reads it.
        with open(os.open("{root}/asked", os.O_WRONLY | os.O_NONBLOCK), "w") as pipe:
            pipe.write("asked")
        break
    except OSError:
        assert time.monotonic() < until
assert host.get_fact(FileContents, path="{root}/asked") == ["asked"]
"""
    (root / "asked").write_text("asked")
    deploy, inventory = write_deploy(sshd, text), sshd.inventory()
    assert sshd.pyinfra(str(inventory), deploy, "-y").returncode == 0
    (root / "asked").unlink()
    os.mkfifo(root / "asked")
    run = sshd.pyinfra(str(inventory.rename(sshd.folder / "ahead.py")), deploy, "-y")
    assert run.returncode == 0, run.stderr
    assert executions(run.stderr) == 1


def test_drift_between_two_runs_is_found_and_only_that_is_repaired(sshd: Sshd, root: Path) -> None:
    inventory, deploy = str(sshd.inventory()), write_deploy(sshd, DEPLOY.format(root=root))
    sshd.pyinfra(inventory, deploy, "-y")
    (root / "d1/file").write_text("something else\n")
    (root / "d3").chmod(0o700)
    (root / "d2/file").unlink()
    (root / "d0/lines").write_text("another line\n")

    plans = {}
    for connector in ("ssh", "rig"):
        dry = sshd.pyinfra(str(sshd.inventory(connector)), deploy, "--dry", "--json")
        plans[connector] = [(op["name"], len(op["hosts_with_change"])) for op in json.loads(dry.stdout)["plan"]]
    assert plans["rig"] == plans["ssh"]

    run = sshd.pyinfra(inventory, deploy, "-y")
    assert run.returncode == 0, run.stderr
    assert {name for name, said in changed(run.stderr).items() if said == "Success"} == {
        "file 1", "directory 3", "file 2", "line",
    }  # fmt: skip
    after = sshd.pyinfra(str(sshd.inventory("ssh")), deploy, "-y")
    assert set(changed(after.stderr).values()) == {"No changes"}


def test_a_change_makes_every_later_fact_live(sshd: Sshd, root: Path) -> None:
    """The second operation depends on what the first one changes: an answer read ahead would be wrong."""
    text = f"""
from pyinfra.operations import files, server
server.shell(name="change", commands=["echo new >{root}/side"])
files.line(name="line", path="{root}/side", line="old", present=False)
files.line(name="new", path="{root}/side", line="new")
"""
    inventory, deploy = str(sshd.inventory()), write_deploy(sshd, text)
    sshd.pyinfra(inventory, deploy, "-y")
    (root / "side").write_text("old\n")

    run = sshd.pyinfra(inventory, deploy, "-y")

    assert run.returncode == 0, run.stderr
    assert changed(run.stderr) == {"change": "Success", "line": "No changes", "new": "No changes"}


def test_what_a_fact_command_prints_never_reaches_the_disk_here(sshd: Sshd, root: Path) -> None:
    (root / "secret").write_text("hunter2\n")
    text = f"""
from pyinfra import host
from pyinfra.facts.files import FileContents
assert host.get_fact(FileContents, path="{root}/secret") == ["hunter2"]
"""
    deploy = write_deploy(sshd, text)
    for _ in range(2):
        run = sshd.pyinfra(str(sshd.inventory()), deploy, "-y")
        assert run.returncode == 0, run.stderr
    stored = sshd.folder / "facts" / "box.json"
    assert "secret" in stored.read_text()
    assert "hunter2" not in stored.read_text()
    assert stored.stat().st_mode & 0o777 == 0o600


def test_facts_with_environment_or_input_and_commands_as_facts_are_not_kept(sshd: Sshd, root: Path) -> None:
    text = f"""
from pyinfra import host
from pyinfra.facts.files import File
from pyinfra.facts.server import Command
host.get_fact(File, path="{root}/env", _env={{"TOKEN": "hunter2"}})
host.get_fact(File, path="{root}/stdin", _stdin="hunter2")
host.get_fact(Command, "echo once >>{root}/count")
host.get_fact(File, path="{root}/kept")
"""
    deploy = write_deploy(sshd, text)
    for _ in range(2):
        run = sshd.pyinfra(str(sshd.inventory()), deploy, "-y")
        assert run.returncode == 0, run.stderr
    entries = json.loads((sshd.folder / "facts" / "box.json").read_text())["commands"]
    assert len(entries) == 1
    assert entries[0]["source"]["arguments"]["path"] == f"{root}/kept"
    assert (root / "count").read_text() == "once\nonce\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user without a password")
def test_facts_that_are_read_as_another_user_are_never_kept(sshd: Sshd, root: Path) -> None:
    text = f"""
from pyinfra import host
from pyinfra.facts.files import Directory
assert host.get_fact(Directory, path="{root}", _su_user="root")
assert host.get_fact(Directory, path="{root}", _su_user="root", _use_su_login=True)
assert host.get_fact(Directory, path="{sshd.folder}")
"""
    deploy = write_deploy(sshd, text)
    for expected in (3, 3):
        run = sshd.pyinfra(str(sshd.inventory()), deploy, "-y")
        assert run.returncode == 0, run.stderr
        assert executions(run.stderr) == expected
    entries = json.loads((sshd.folder / "facts" / "box.json").read_text())["commands"]
    assert [entry["source"]["arguments"]["path"] == f"{root}" for entry in entries] == [False]


def test_odd_output_answers_as_with_the_stock_connector(sshd: Sshd, root: Path) -> None:
    odd = ("ü\n\n  two  \n\x1b[31mred\x07\n\nlast without newline", "", "\n", "\n\n", " ")
    for number, content in enumerate(odd):
        (root / str(number)).write_text(content)
    text = f"""
import json
from pyinfra import host
from pyinfra.facts.files import FileContents
answers = [host.get_fact(FileContents, path=f"{root}/{{n}}") for n in range({len(odd) + 1})]
with open("answers.json", "a") as file:
    file.write(json.dumps(answers) + "\\n")
"""
    deploy = write_deploy(sshd, text)
    for connector in ("ssh", "rig", "rig"):
        run = sshd.pyinfra(str(sshd.inventory(connector)), deploy, "-y")
        assert run.returncode == 0, run.stderr
    stock, live, ahead = (sshd.folder / "answers.json").read_text().splitlines()
    assert stock == live == ahead
    assert executions(run.stderr) == 1


def test_the_connection_sends_at_once_and_notices_a_dead_peer(sshd: Sshd) -> None:
    text = """
import json, socket
from pyinfra import host
sock = host.connector.client.get_transport().sock
names = ("TCP_NODELAY", "TCP_USER_TIMEOUT")
with open("options.json", "w") as file:
    json.dump({name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}, file)
"""
    run = sshd.pyinfra(str(sshd.inventory()), write_deploy(sshd, text), "-y")
    assert run.returncode == 0, run.stderr
    options = json.loads((sshd.folder / "options.json").read_text())
    assert options == {"TCP_NODELAY": 1, "TCP_USER_TIMEOUT": transport.DEAD_AFTER_MS}


def test_a_connection_ends_with_its_host(sshd: Sshd) -> None:
    text = """
from pyinfra import host
transport = host.connector.client.get_transport()
assert transport.is_active()
host.disconnect()
assert not transport.is_active()
"""
    run = sshd.pyinfra(str(sshd.inventory()), write_deploy(sshd, text), "-y")
    assert run.returncode == 0, run.stderr


def test_a_connection_on_which_nothing_happens_is_kept_alive(tmp_path: Path) -> None:
    # With DEBUG it logs every request.
    with running_sshd(tmp_path, "LogLevel DEBUG\n") as sshd:
        asked = f"until grep -q keepalive@lag.net {sshd.folder}/sshd.log; do sleep 0.1; done"
        text = f"from pyinfra.operations import server\nserver.shell(commands=[{asked!r}])\n"
        inventory = sshd.inventory()
        inventory.write_text(f"from rigup.ssh import transport\ntransport.KEEPALIVE_S = 1\n{inventory.read_text()}")
        run = sshd.pyinfra(str(inventory), write_deploy(sshd, text), "-y")
        assert run.returncode == 0, run.stderr


def test_a_connection_cut_between_two_commands_is_made_again(sshd: Sshd, root: Path) -> None:
    text = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from loopback_sshd import children
from pyinfra.operations import files, python, server
def cut():
    for child in children(int(os.environ["SSHD_PID"])):
        for pid in [*children(child), child]:
            os.kill(pid, signal.SIGKILL)
server.shell(name="before", commands=["echo before >>{root}/log"])
python.call(name="cut", function=cut)
server.shell(name="after", commands=["echo after >>{root}/log"])
python.call(name="cut again", function=cut)
files.put(name="upload", src="deploy.py", dest="{root}/uploaded")
python.call(name="cut a third time", function=cut)
files.line(name="fact first", path="{root}/log", line="line")
"""
    deploy = write_deploy(sshd, text)

    run = sshd.pyinfra(str(sshd.inventory()), deploy, "-y")

    assert run.returncode == 0, run.stderr
    assert (root / "log").read_text() == "before\nafter\nline\n"
    assert (root / "uploaded").read_text() == text
    assert run.stderr.count("Connection lost") == 3, run.stderr


def cut_once_logged(sshd: Sshd, log: Path, deploy: str) -> tuple[int, str]:
    """How a deploy ends whose connection is cut as soon as there is a log, and what it says."""
    process = subprocess.Popen(
        [str(PYINFRA), str(sshd.inventory()), deploy, "-y"],
        cwd=sshd.folder, env=sshd.shell_environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(log.exists, lambda: process.poll() is None)
    sshd.cut()
    _, stderr = process.communicate(timeout=HANG_S)
    return process.returncode, stderr


def test_a_command_under_which_the_connection_breaks_is_not_run_twice(sshd: Sshd, root: Path) -> None:
    text = f"""
from pyinfra.operations import server
server.shell(name="slow", commands=["echo ran >>{root}/log; {sshd.forever}"])
"""
    deploy = write_deploy(sshd, text)
    status, stderr = cut_once_logged(sshd, root / "log", deploy)

    assert status == 1
    assert (root / "log").read_text() == "ran\n"
    assert "it may have run, so it is not run again" in stderr


def test_a_fact_under_which_the_connection_breaks_is_read_again(sshd: Sshd, root: Path) -> None:
    text = f"""
from pyinfra import host
from pyinfra.api import FactBase
class Slow(FactBase):
    command = "echo started >>{root}/log; [ $(wc -l <{root}/log) = 2 ] || {sshd.forever}; echo done"
assert host.get_fact(Slow) == "done"
"""
    deploy = write_deploy(sshd, text)
    status, stderr = cut_once_logged(sshd, root / "log", deploy)

    assert status == 0, stderr
    assert "connecting again" in stderr


def test_a_command_that_a_signal_ends_fails_and_keeps_the_connection(sshd: Sshd, root: Path) -> None:
    text = f"""
from pyinfra.operations import server
server.shell(name="killed", commands=["kill -9 $$"], _ignore_errors=True)
server.shell(name="after", commands=["echo after >{root}/log"])
"""
    run = sshd.pyinfra(str(sshd.inventory()), write_deploy(sshd, text), "-y")
    assert run.returncode == 0, run.stderr
    assert "Connection lost" not in run.stderr
    assert (root / "log").exists()


def test_a_host_that_cannot_be_reached_gives_one_line_and_no_traceback(sshd: Sshd) -> None:
    inventory = sshd.inventory(ssh_port=1)
    run = sshd.pyinfra(str(inventory), write_deploy(sshd, "pass\n"), "-y")
    assert run.returncode == 1
    assert "no connection to" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_hung_fact_holds_up_one_run_and_is_left_out_of_the_next_batch(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "programs").mkdir()
    with running_sshd(tmp_path, programs_first(tmp_path / "programs")) as sshd:
        log = tmp_path / "root" / "log"
        # Hangs in a batch only.
        cat = tmp_path / "programs" / "cat"
        cat.write_text(
            "#!/bin/sh\nparent=$(cut -d' ' -f4 </proc/$PPID/stat)\n"
            f"tr '\\0' ' ' </proc/$parent/cmdline | grep -q ^perl && {{ echo hung >>{log}; {sshd.forever}; }}\n"
            'exec /bin/cat "$@"\n'
        )
        cat.chmod(0o755)
        (tmp_path / "root" / "file").write_text("done")
        text = f"""
from pyinfra import host
from pyinfra.facts.files import FileContents
assert host.get_fact(FileContents, path="{tmp_path}/root/file") == ["done"]
"""
        deploy, inventory = write_deploy(sshd, text), sshd.inventory()
        inventory.write_text(f"{inventory.read_text()}batch.LIMIT_S = 1\n")
        for _ in range(2):
            assert not log.exists()
            run = sshd.pyinfra(str(inventory), deploy, "-y")
            assert run.returncode == 0, run.stderr
        assert json.loads((sshd.folder / "facts" / "box.json").read_text())["commands"][0]["left_out"] > 0

        after = sshd.pyinfra(str(inventory), deploy, "-y")
        assert after.returncode == 0, after.stderr
        assert log.read_text() == "hung\n"


ATTACKS = [
    {"command": "touch {mark}"},
    {"source": "touch {mark}"},
    {"source": {"fact": "pyinfra.facts.server.Command", "arguments": {"command": "touch {mark}"}}},
    {"source": {"fact": "pyinfra.facts.server.Which", "arguments": {"command": "x; touch {mark}"}}},
    {"source": {"fact": "pyinfra.facts.server.Which", "arguments": {"command": "$(touch {mark})"}}},
    {"source": {"fact": "rigup.facts.files.FileText", "arguments": {"path": "/x'; touch {mark}; '"}}},
    {"source": {"fact": "evil.Fact", "arguments": {}}},
    {"source": {"fact": "os.system", "arguments": {"command": "touch {mark}"}}},
    {"source": {"fact": "rigup.facts.files.posixpath.join", "arguments": {"a": "touch {mark}"}}},
]


def test_no_command_in_the_memory_of_a_run_is_executed(sshd: Sshd, root: Path) -> None:
    (sshd.folder / "evil.py").write_text(f"open('{root}/mark', 'w')\n")
    entries = [{"sudo": False, "shell": "sh", "unused": 0, "left_out": 0, **attack} for attack in ATTACKS]
    memory = sshd.folder / "facts" / "box.json"
    memory.parent.mkdir()
    memory.write_text(json.dumps({"commands": entries}).replace("{mark}", f"{root}/mark"))
    text = f"""
from pyinfra import host
from pyinfra.facts.files import File
assert host.get_fact(File, path="{root}/x y") is None
assert host.get_fact(File, path="{root}") is False
"""
    run = sshd.pyinfra(str(sshd.inventory()), write_deploy(sshd, text), "-y")
    assert run.returncode == 0, run.stderr
    assert not (root / "mark").exists()
    stored = json.loads(memory.read_text())["commands"]
    assert {"fact": "pyinfra.facts.files.File", "arguments": {"path": str(root)}} in [each["source"] for each in stored]
    assert "command" not in {key for each in stored for key in each}


def test_the_deploy_reaches_the_same_state_without_reading_ahead(sshd: Sshd, root: Path) -> None:
    deploy = write_deploy(sshd, DEPLOY.format(root=root))
    sshd.pyinfra(str(sshd.inventory()), deploy, "-y")
    run = sshd.pyinfra(str(sshd.inventory()), deploy, "-y", RIGUP_PREFETCH="off")
    assert set(changed(run.stderr).values()) == {"No changes"}
    assert executions(run.stderr) > 15


def test_this_python_is_the_one_that_pyinfra_runs_in() -> None:
    assert PYINFRA.exists(), f"no pyinfra beside {sys.executable}"
