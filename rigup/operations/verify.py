"""Proofs: what was tried on the host and worked. Each holds for as long as nothing it rests on was started anew."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra.api.command import FunctionCommand, QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.diagnosis.explain import explain
from rigup.facts.serving import Proof, ProofValue
from rigup.operations._host import run, say, work
from rigup.operations._units import DIAGNOSED_LINES, SHOWN_LINES, last_lines, show
from rigup.plan.model import EndpointPlan
from rigup.render.systemd import PROVE, PYTHON
from rigup.render.verify import gpus_verification, result_arguments, result_path, verify_argv

__all__ = ["proof"]

Commands = Generator[FunctionCommand, None, None]

DOCKER = "docker.service"


@operation()
def proof(endpoint: EndpointPlan, gpus: int) -> Commands:
    """Have it proven that containers on the host see its GPUs, and that `endpoint` does what its recipe is for.

    Containers must see them by `--gpus`, by CDI, and still after `systemctl daemon-reload`; they are made from the
    endpoint's own image, and nothing is pulled. That holds until Docker is started anew. The endpoint's own proof holds
    for this plan and this start of its unit. Where it is reachable from beyond the host, it must refuse who has no key.

    + gpus: how many GPUs the host has
    """
    if endpoint.image:
        digest = f"{endpoint.image} {gpus}"
        argv = [PYTHON, PROVE, "gpus", f"--image={endpoint.image}", f"--count={gpus}"]
        name = gpus_verification(endpoint.image)
        yield from _proven(name, DOCKER, digest, [*argv, *result_arguments(name, DOCKER, digest)])
    yield from _proven(f"endpoint-{endpoint.name}", endpoint.unit, endpoint.digest, verify_argv(endpoint))
    if endpoint.public_url:
        argv = [PYTHON, PROVE, "gateway", f"--url={endpoint.public_url}", f"--health={endpoint.ready_path}"]
        name, unit, digest = f"gateway-{endpoint.name}", endpoint.gateway, endpoint.public_url
        argv += [f"--key-file={endpoint.key_file}", *result_arguments(name, unit, digest)]
        yield from _proven(name, unit, digest, argv)


def _log_of(host: Host, unit: str, complaints: Sequence[str]) -> list[str]:
    """The last lines of the unit's log, and the known cause that it or the proof's complaints show."""
    log = last_lines(host, unit, show(host, unit).invocation, DIAGNOSED_LINES)
    return [
        f"The last lines of {unit}:",
        *(f"    {line}" for line in log[-SHOWN_LINES:]),
        *explain([*log, *complaints]),
    ]


def _proven(name: str, unit: str, digest: str, argv: Sequence[str]) -> Commands:
    path = result_path(name)
    proof: ProofValue = host.get_fact(Proof, path=path, unit=unit)
    if proof.holds(digest):
        host.noop(f"proven at {proof.record.get('at')}")
        return

    def prove(host: Host) -> None:
        answer = run(host, *(QuoteString(argument) for argument in argv))
        for line in answer.lines:
            say(host, line)
        if not answer.ok:
            told = [f"{host.name}: {name} does not do what it should.", *(f"    {line}" for line in answer.errors)]
            raise OperationError("\n".join([*told, *_log_of(host, unit, answer.errors)]))

    yield work(prove, f"prove {name}")
