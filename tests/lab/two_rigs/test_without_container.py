"""A recipe without a container, of the user's own: deployed over the one that serves in one, audited, and back again.

The tests build on each other, in file order. The host is the second one of test_deploy, which has Python 3.11.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from lab import machine
from lab.machine import Host
from lab.mirror.engine import PLACE
from lab.registry import tree
from tests.lab.rigs import Result, Rigs
from tests.lab.two_rigs.conftest import SECOND

ODD = 'a "quoted" $HOME `date` %h \\ back'
OWN = """\
id: own-bare
title: The real vLLM for CPUs, without a container
extends: vllm-stock-b12x
status: assembled
tool_calls: unknown
evidence: [{source: here, kind: assembled, says: a recipe of one's own}]
engine: {min: null}
venv: {python: "3.11", packages: ["vllm==0.32.0"]}
argv:
  - --gpu-memory-utilization=0.90
  - --max-model-len=300000
env: {VLLM_ALLOW_LONG_MAX_MODEL_LEN: "1", ODD: ODD_VALUE}
patches:
  - target: yarn
    factor: 2.0
    tokens: 262144
    rope: {mrope_interleaved: true, mrope_section: [11, 11, 10], rope_theta: 10000000, partial_rotary_factor: 0.25}
    why: a longer context
  - {target: chat-template, system: merge, thinking: false, why: two system messages}
  - {target: generation-defaults, set: {temperature: 0.5}, why: a default}
"""
REFUSED = """\
id: own-refused
title: The same with an option that it does not have, which preflight cannot know of a fork
extends: own-bare
status: assembled
tool_calls: unknown
evidence: [{source: here, kind: assembled, says: a mistake of one's own}]
engine: {fork: lab}
argv: {add: [--no-such-option]}
"""


@dataclass
class Bare:
    host: Host
    rigs: Rigs

    def deploy(self, recipe: str | dict[str, str] | None) -> Result:
        """A deploy with that recipe or need in the inventory, or the default one, which must end well."""
        result = self.try_to_deploy(recipe)
        assert result.code == 0, result.output
        return result

    def try_to_deploy(self, recipe: str | dict[str, str] | None) -> Result:
        """The same, however it ends."""
        connection = {key: value for key, value in self.rigs.hosts[SECOND].items() if key != "recipe"}
        self.rigs.hosts[SECOND] = {**connection, "recipe": recipe} if recipe else connection
        self.rigs.write()
        return self.rigs.deploy("-y", RIGUP_STATS="1")

    def main_process(self) -> str:
        return self.host.shell("systemctl show --value --property=MainPID llm@main.service").stdout.strip()

    def chat(self) -> dict[str, Any]:
        """What it answers to the two system messages that OpenCode sends."""
        system = [{"role": "system", "content": text} for text in ("Be brief.", "Answer in French.")]
        messages = [*system, {"role": "user", "content": "Hello"}]
        question = {"model": "Qwen3.5-397B-A17B", "messages": messages, "max_tokens": 4}
        curl = "curl -sS --max-time 300 -H Content-Type:application/json --data @- http://127.0.0.1:8000/v1/chat/completions"
        answer: dict[str, Any] = json.loads(self.host.shell(curl, stdin=json.dumps(question), timeout=330).stdout)
        return answer


@pytest.fixture(scope="module")
def bare(rigs: Rigs) -> Iterator[Bare]:
    host = machine.get(SECOND)
    tree.build()
    if host.shell(f"test -d {PLACE}/vllm", check=False).returncode:
        host.reboot()
    recipes = rigs.directory / "recipes"
    recipes.mkdir(exist_ok=True)
    (recipes / "own-bare.yaml").write_text(OWN.replace("ODD_VALUE", json.dumps(ODD)))
    (recipes / "own-refused.yaml").write_text(REFUSED)
    alone = replace(rigs, hosts={SECOND: rigs.hosts[SECOND]})
    yield Bare(host, alone)
    rigs.write()


def test_the_same_command_takes_an_endpoint_out_of_its_container(bare: Bare) -> None:
    bare.deploy(None)
    assert "llm-main" in bare.host.shell("docker ps --format '{{.Names}}'").stdout
    assert bare.chat()["usage"]["completion_tokens"] == 4
    changed = bare.deploy("own-bare").changed()
    assert f"{SECOND} config | Install vllm==0.32.0" in changed
    assert not bare.host.shell("docker ps --all --quiet").stdout
    assert bare.chat()["usage"]["completion_tokens"] == 4


def test_the_server_runs_as_its_own_user_with_the_recipes_environment(bare: Bare) -> None:
    process = bare.main_process()
    owner, environ = bare.host.shell(
        f"stat -c %U /proc/{process}; tr '\\0' '\\n' </proc/{process}/environ | grep ^ODD="
    ).stdout.splitlines()
    assert (owner, environ) == ("rigup-serve", f"ODD={ODD}")
    log = bare.host.shell(f"journalctl --unit llm@main.service _PID={process}").stdout
    # vLLM's own words: it has read the patched defaults, the longer context and the template.
    assert "{'temperature': 0.5," in log
    assert "User-specified max_model_len (300000)" in log
    assert "'chat_template': '/etc/rigup/endpoints/main/chat_template.jinja'" in log
    assert '"rope_type":"yarn"' in bare.host.shell(f"tr '\\0' '\\n' </proc/{process}/cmdline").stdout


def test_the_patched_files_are_seen_by_the_server_alone(bare: Bare) -> None:
    read = "python3 -c \"import glob, json; [f] = glob.glob('/srv/models/*/*/*/generation_config.json'); "
    read += "print(json.load(open(f))['temperature'])\""
    outside = bare.host.shell(read).stdout.strip()
    inside = bare.host.shell(f"nsenter --mount --target {bare.main_process()} {read}").stdout.strip()
    assert (outside, inside) == ("0.6", "0.5")


def test_nothing_changes_in_the_next_deploy_and_the_audit_finds_nothing(bare: Bare) -> None:
    assert bare.deploy("own-bare").changed() == []
    # That one asked about a process which the one before had not known.
    again = bare.deploy("own-bare")
    assert re.search(r"remote executions: 1$", again.output, re.MULTILINE), again.output
    audit = bare.rigs.audit()
    assert audit.code == 0, audit.output


def test_arguments_that_its_parser_refuses_are_reported_while_it_keeps_serving(bare: Bare) -> None:
    process = bare.main_process()
    result = bare.try_to_deploy("own-refused")
    assert result.code > 0
    assert "the engine of own-refused refuses its arguments" in result.output, result.output
    assert "unrecognized arguments: --no-such-option" in result.output
    assert bare.main_process() == process
    assert bare.deploy("own-bare").changed() == [f"{SECOND} serve | Remove the files of earlier generations"]


def test_a_package_changed_by_hand_is_found_and_repaired_while_the_server_runs(bare: Bare) -> None:
    engine = bare.host.shell("ls -d /usr/local/lib/rigup/engines/*/").stdout.strip()
    process = bare.main_process()
    bare.host.shell(
        f"rm -r {engine}lib/python3.11/site-packages/cachetools*; echo '# mine' >> {engine}requirements.lock"
    )
    audit = bare.rigs.audit()
    assert audit.code == 2 and re.findall(r"(\S+) +FAILED", audit.output) == ["config-venv"], audit.output
    assert bare.deploy("own-bare").changed() == [f"{SECOND} config | Install vllm==0.32.0"]
    assert bare.main_process() == process
    assert bare.rigs.audit().code == 0


def test_a_server_with_other_arguments_is_found_and_restarted(bare: Bare) -> None:
    unit, as_it_was = "/usr/local/lib/systemd/system/llm@main.service", "/run/llm.as-it-was"
    bare.host.shell(
        f"cp -a {unit} {as_it_was} && sed -i 's/^ExecStart=.*/&\\n  --max-log-len=7 \\\\/' {unit} && "
        f"systemctl daemon-reload && systemctl restart llm@main && cp -a {as_it_was} {unit} && systemctl daemon-reload",
        timeout=300,
    )
    audit = bare.rigs.audit()
    assert audit.code == 2 and re.findall(r"(\S+) +FAILED", audit.output) == ["serve-process"], audit.output
    assert f"{SECOND} serve | Serve own-bare as main" in bare.deploy("own-bare").changed()
    assert bare.rigs.audit().code == 0


def test_and_a_need_takes_it_back_to_the_best_current_recipe(bare: Bare) -> None:
    need = {"for": "agents", "engine": "vllm", "model": "Qwen3.5-397B-A17B"}
    bare.deploy(need)
    plan = json.loads(bare.host.shell("cat /etc/rigup/plan.json").stdout)
    assert [endpoint["recipe"] for endpoint in plan["endpoints"]] == ["vllm-nvfp4-cu130"]
    assert "llm-main" in bare.host.shell("docker ps --format '{{.Names}}'").stdout
    assert not bare.host.shell("ps -u rigup-serve -o pid=", check=False).stdout.strip()
    assert bare.chat()["usage"]["completion_tokens"] == 4
    # The default is the same recipe: only the plan's record of the settings is another one.
    assert bare.deploy(None).changed() == [f"{SECOND} serve | Write the plan to the host"]
