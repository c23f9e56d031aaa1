"""Proofs: what was tried on the host and worked. Each holds for as long as nothing it rests on was started anew."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra.api.command import FunctionCommand, QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.diagnosis import explain
from rigup.facts.serving import Proof, ProofValue
from rigup.operations._host import run, say, work
from rigup.operations._units import DIAGNOSED_LINES, SHOWN_LINES, last_lines, show
from rigup.plan import EndpointPlan

__all__ = ["proof", "proof_of"]

Commands = Generator[FunctionCommand, None, None]

PROVE = "/usr/local/lib/rigup/prove.py"
DOCKER = "docker.service"


def proof_of(name: str) -> str:
    """Where the proof `name` stands; in /run, so that a boot forgets it."""
    return f"/run/rigup/proof-{name}.json"


@operation()
def proof(endpoint: EndpointPlan, gpus: int, timeout: float = 600) -> Commands:
    """Have it proven that containers on the host see its GPUs, and that `endpoint` answers.

    Containers must see them by `--gpus`, by CDI, and still after `systemctl daemon-reload`; they are made from the
    endpoint's own image, and nothing is pulled. That holds until Docker is started anew. The endpoint must be healthy,
    list its model and complete a chat; that holds for this plan and this start of its unit. Where it is reachable from
    beyond the host, it must refuse who has no key there.

    + gpus: how many GPUs the host has
    + timeout: seconds that one request may take
    """
    count = str(gpus)
    yield from _proven("gpus", DOCKER, f"{endpoint.image} {count}", ["--image", endpoint.image, "--count", count])
    arguments = ["--url", endpoint.url, "--model", endpoint.served_name, "--timeout", str(int(timeout))]
    arguments += ["--health", endpoint.ready_path]
    yield from _proven(f"endpoint-{endpoint.name}", endpoint.unit, endpoint.digest, arguments)
    if endpoint.public_url:
        arguments = ["--url", endpoint.public_url, "--health", endpoint.ready_path, "--key-file", endpoint.key_file]
        yield from _proven(f"gate-{endpoint.name}", endpoint.gate, endpoint.public_url, arguments)


def _log_of(host: Host, unit: str) -> list[str]:
    """The last lines of the unit's log, and what it shows of a known cause."""
    log = last_lines(host, unit, show(host, unit).invocation, DIAGNOSED_LINES)
    return [f"The last lines of {unit}:", *(f"    {line}" for line in log[-SHOWN_LINES:]), *explain(log)]


def _proven(name: str, unit: str, digest: str, arguments: Sequence[str]) -> Commands:
    path = proof_of(name)
    proof: ProofValue = host.get_fact(Proof, path=path, unit=unit)
    if proof.holds(digest):
        host.noop(f"proven at {proof.record.get('at')}")
        return

    def prove(host: Host) -> None:
        what = name.partition("-")[0]
        argv = ["/usr/bin/python3", PROVE, what, *arguments, "--out", path, "--unit", unit, "--digest", digest]
        answer = run(host, *(QuoteString(argument) for argument in argv))
        for line in answer.lines:
            say(host, line)
        if not answer.ok:
            told = [f"{host.name}: {name} does not do what it should.", *(f"    {line}" for line in answer.errors)]
            raise OperationError("\n".join([*told, *_log_of(host, unit)]))

    yield work(prove, f"prove {name}")
