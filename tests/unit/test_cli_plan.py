"""`rigup plan` on this machine: small deploys over files in a temporary directory, looked at and never run."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rigup.cli.plan import exit_code
from rigup.run.foresee import difference, foresee, hidden_because
from tests.unit.own_command import rigup

USER = pwd.getpwuid(os.getuid()).pw_name
DEPLOY = f"""
from pyinfra.api.deploy import deploy
from rigup.operations import files as ours

def install(**arguments):
    ours.install(user={USER!r}, group={USER!r}, **arguments)

@deploy("base")
def base():
    BODY

base()
"""


@dataclass
class Project:
    """A directory with a deploy, its inventory, and a place for the files that it is about."""

    directory: Path

    @property
    def place(self) -> Path:
        return self.directory / "place"

    def write(self, body: str, hosts: str = '["@local"]') -> None:
        (self.directory / "inventory").mkdir(exist_ok=True)
        self.place.mkdir(exist_ok=True)
        (self.directory / "inventory/lab.py").write_text(f"lab = {hosts}\n")
        body = body.replace("PLACE", str(self.place)).replace("\n", "\n    ")
        (self.directory / "deploy.py").write_text(DEPLOY.replace("BODY", body))

    def plan(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return rigup("plan", *arguments, cwd=self.directory)

    def entries(self, host: str = "@local") -> dict[str, dict[str, Any]]:
        done = self.plan("--json")
        assert done.stdout, done.stderr
        return {entry["operation"]: entry for entry in json.loads(done.stdout)["hosts"][host]["entries"]}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


MOTTO = 'install(name="Write the motto", dest="PLACE/motto", content="one\\ntwo\\n")'


def test_a_file_that_is_not_there_is_planned_and_not_written(project: Project) -> None:
    project.write(MOTTO)
    done = project.plan()
    assert done.returncode == 2
    assert "@local: 1 of 1 operations would change something" in done.stdout
    assert f"{project.place}/motto (new)" in done.stdout
    assert "+two" in done.stdout
    assert list(project.place.iterdir()) == []


def test_where_nothing_is_to_be_done_the_plan_says_so_and_exits_with_0(project: Project) -> None:
    project.write(MOTTO)
    (project.place / "motto").write_text("one\ntwo\n")
    done = project.plan()
    assert (done.returncode, done.stdout.strip()) == (0, "@local: nothing to change")


def test_a_file_that_was_edited_is_shown_as_a_diff(project: Project) -> None:
    project.write(MOTTO)
    (project.place / "motto").write_text("one\nby hand\n")
    (file,) = project.entries()["Write the motto"]["files"]
    assert not file["new"]
    assert file["diff"] == ["@@ -1,2 +1,2 @@", " one", "-by hand", "+two"]


def test_a_wrong_mode_alone_is_a_change(project: Project) -> None:
    project.write(MOTTO)
    motto = project.place / "motto"
    motto.write_text("one\ntwo\n")
    motto.chmod(0o755)
    (file,) = project.entries()["Write the motto"]["files"]
    assert (file["mode"], file["diff"]) == (["755", "644"], [])


SECRETS = {
    "secret": 'content="key=hunter2\\n", mode="600", secret=True',
    "not-for-all": 'content="key=hunter2\\n", mode="640"',
    "hidden": 'content=HiddenValue("key=hunter2\\n")',
}


def test_a_secret_is_in_no_plan(project: Project) -> None:
    writes = [f'install(name="Write {name}", dest="PLACE/{name}", {how})' for name, how in SECRETS.items()]
    project.write("\n".join(["from pyinfra.api.hiddenvalue import HiddenValue", *writes]))
    for shape in ((), ("--json",)):
        done = project.plan(*shape)
        assert done.returncode == 2
        assert all(f"place/{name}" in done.stdout for name in SECRETS)
        assert "hunter2" not in done.stdout + done.stderr


def test_what_somebody_hid_in_a_file_of_ours_is_in_no_plan(project: Project) -> None:
    project.write(MOTTO)
    motto = project.place / "motto"
    motto.write_text("password=hunter2\n")
    motto.chmod(0o600)
    done = project.plan()
    assert "mode 600 -> 644: not shown" in done.stdout
    assert "hunter2" not in done.stdout


def test_of_a_merged_file_only_our_own_keys_are_shown(project: Project) -> None:
    values = '{"log": {"driver": "local"}, "mirrors": ["mine"]}'
    body = 'from rigup.operations import docker\ndocker.DAEMON_JSON = "PLACE/daemon.json"\n'
    project.write(f'{body}docker.daemon_config(name="Merge", values={values})')
    there = {
        "proxies": {"http": "http://me:hunter2@proxy"},
        "log": {"driver": "json-file", "opts": "theirs"},
        "mirrors": ["http://me:hunter2@theirs"],
    }
    (project.place / "daemon.json").write_text(json.dumps(there))
    (file,) = project.entries()["Merge"]["files"]
    changed = [line for line in file["diff"] if line[0] in "+-"]
    assert changed == [
        '-        "driver": "json-file"',
        '+        "driver": "local"',
        '-    "mirrors": []',
        '+    "mirrors": [',
        '+        "mine"',
        "+    ]",
    ]
    assert not any("theirs" in line or "hunter2" in line for line in file["diff"])


def test_what_looks_at_a_file_that_is_about_to_be_written_cannot_be_known(project: Project) -> None:
    body = MOTTO + '\nours.absent(name="Remove", path="PLACE/motto.json")'
    body += "\nfrom rigup.operations import venv"
    body += '\nvenv.synced(name="Sync", path="PLACE/venv", requirements="PLACE/motto", index="x")'
    project.write(body)
    (project.place / "motto").write_text("by hand\n")
    (project.place / "venv").mkdir()
    (project.place / "venv/requirements.lock").write_text("by hand\n")
    entries = project.entries()
    assert entries["Sync"]["result"] == "unknown"
    assert entries["Sync"]["after"] == ["base: Write the motto"]
    assert entries["Remove"]["result"] == "nothing"
    assert "known after base: Write the motto" in project.plan().stdout


def test_a_condition_is_decided_during_the_deploy(project: Project) -> None:
    project.write(MOTTO.replace(")", ", _if=lambda: True)"))
    assert project.entries()["Write the motto"]["result"] == "unknown"
    assert "has a condition" in project.plan().stdout


def test_a_dead_host_fails_the_plan_and_the_others_are_still_told(project: Project) -> None:
    dead = '("dead", {"ssh_port": 1, "ssh_hostname": "127.0.0.1"})'
    project.write(MOTTO, f'["@local", {dead}]')
    done = project.plan()
    assert done.returncode == 1
    assert "dead: unreachable" in done.stdout
    assert "Unable to connect to port 1" in done.stdout
    assert "This plan is incomplete" in done.stdout
    assert "@local: 1 of 1 operations would change something" in done.stdout


def test_a_limit_leaves_the_other_hosts_alone(project: Project) -> None:
    # The host of the inventory is a group of pyinfra's, which its --limit takes too.
    project.write(MOTTO, '["@local"]\ndead = [("dead", {"ssh_port": 1, "ssh_hostname": "127.0.0.1"})]')
    (project.directory / "inventory/lab.yaml").write_text("hosts: {lab: {address: 127.0.0.1}}\n")
    done = project.plan("lab")
    assert done.returncode == 2
    assert "dead" not in done.stdout


def test_the_next_command_has_the_inventory_and_the_hosts_of_the_plan(project: Project) -> None:
    # The host of the inventory is a group of pyinfra's here.
    project.write(MOTTO)
    (project.directory / "other lab.yaml").write_text("hosts: {lab: {address: 127.0.0.1}}\n")
    assert project.plan().stdout.endswith("Next: rigup deploy\n")
    done = project.plan("lab", "--inventory", "other lab.yaml")
    assert done.stdout.endswith("Next: RIGUP_INVENTORY='other lab.yaml' rigup deploy lab\n")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lap", "no host is named 'lap': did you mean lab?"),
        ("lab/mian", "lab has no endpoint 'mian': did you mean main?"),
        ("lab/main", "lab/main: this command works on whole hosts: write lab"),
    ],
)
def test_a_host_that_the_inventory_does_not_have_is_refused(project: Project, word: str, message: str) -> None:
    project.write(MOTTO)
    (project.directory / "inventory/lab.yaml").write_text("hosts: {lab: {address: 127.0.0.1}}\n")
    done = project.plan(word)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_a_deploy_that_refuses_fails_the_plan_with_its_own_words(project: Project) -> None:
    project.write('from pyinfra.api.exceptions import PyinfraError\nraise PyinfraError("no GPU anywhere")')
    done = project.plan()
    assert done.returncode == 1
    assert "no GPU anywhere" in done.stdout
    assert "@local: not planned" in done.stdout
    assert "This plan is incomplete" in done.stdout
    told = json.loads(project.plan("--json").stdout)
    assert "no GPU anywhere" in told["error"]


def test_without_a_deploy_here_the_plan_says_where_it_looked(tmp_path: Path) -> None:
    done = Project(tmp_path).plan()
    assert done.returncode == 1
    assert " has no deploy.py and inventory/lab.py: change to" in done.stderr


def test_a_plan_leaves_no_run_behind(project: Project) -> None:
    project.write("from rigup.run.recorder import start_recording\nstart_recording()\n" + MOTTO)
    assert project.plan().returncode == 2
    project.write('from rigup.run.recorder import start_recording\nstart_recording()\nraise Exception("broken")')
    assert project.plan().returncode == 1
    assert not (project.directory / ".rigup/runs").exists()


def entry(operation: str, change: bool, *reads: str) -> dict[str, Any]:
    return {
        "step": "s", "operation": operation, "change": change, "conditional": False, "files": [],
        "reads": set(reads),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (("fact InstalledVersions", "nvidia-kernel-open-dkms"), ("fact DriverState", "fact KernelState")),
        (("fact InstalledVersions", "docker-ce"), ("fact UnitState", "docker.service")),
        (("fact FileInfo", "/etc/modprobe.d/rigup.conf"), ("fact ModuleParameters", "nvidia_uvm")),
        (("fact DriverState",), ("fact Verification", "/run/rigup/verify-gpus.json")),
    ],
    ids=["driver, reboot", "Docker, its unit", "module options, reboot", "reboot, verification"],
)
def test_what_rests_on_a_package_an_option_or_a_reboot_is_known_only_then(
    earlier: tuple[str, ...], later: tuple[str, ...]
) -> None:
    told = foresee([entry("first", True, *earlier), entry("second", False, *later)])
    assert [each["result"] for each in told] == ["change", "unknown"]
    told = foresee([entry("first", False, *earlier), entry("second", False, *later)])
    assert [each["result"] for each in told] == ["nothing", "nothing"]


def test_two_files_have_nothing_to_do_with_each_other() -> None:
    told = foresee([entry("first", True, "fact FileInfo", "/a"), entry("second", False, "fact FileInfo", "/b")])
    assert told[1]["result"] == "nothing"


def test_logins_in_urls_are_masked() -> None:
    lines = difference("", "index-url = https://me:hunter2@pypi.example/simple\n")
    assert lines[-1] == "+index-url = https://***@pypi.example/simple"


def test_only_what_everybody_may_read_is_shown() -> None:
    assert hidden_because("644") is None
    assert hidden_because("600") and hidden_because("644", "600") and hidden_because("660", "644")


def test_a_host_that_could_not_be_looked_at_outweighs_pending_changes() -> None:
    pending = {"result": "ok", "error": None, "entries": [{"result": "unknown"}]}
    assert exit_code({"error": None, "hosts": {"a": pending}}) == 2
    assert exit_code({"error": None, "hosts": {"a": pending, "b": {**pending, "result": "failed"}}}) == 1
    assert exit_code({"error": "broken", "hosts": {}}) == 1


STEPS = """
from pyinfra.api.deploy import deploy
from rigup.operations import files as ours

@deploy("second")
def second():
    for name in ("b", "a"):
        ours.install(name=f"Write {name}", dest=f"PLACE/{name}", content="x")

@deploy("first")
def first():
    ours.install(name="Write c", dest="PLACE/c", content="x")

first()
second()
"""


def test_the_steps_of_the_installed_deploy_keep_their_order(project: Project) -> None:
    project.write("")
    (project.directory / "steps.py").write_text(STEPS.replace("PLACE", str(project.place)))
    own = 'ours.install(name="Write own", dest="PLACE/own", content="x")'.replace("PLACE", str(project.place))
    (project.directory / "deploy.py").write_text(
        "from pathlib import Path\nfrom rigup import project\nfrom rigup.operations import files as ours\n"
        f'project._run(Path("steps.py").resolve())\n{own}\n'
    )
    assert list(project.entries()) == ["Write c", "Write b", "Write a", "Write own"]
