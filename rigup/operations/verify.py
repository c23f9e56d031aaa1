"""Proofs: what was tried on the host and worked. Each holds for as long as nothing it rests on was started anew."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra.api.command import FunctionCommand, QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.serving import Proof, ProofValue
from rigup.operations._host import run, say, work
from rigup.plan import EndpointPlan
from rigup.render import PROVE, PYTHON, gpus_proof, proof_of, prove_argv

__all__ = ["proof"]

Commands = Generator[FunctionCommand, None, None]

DOCKER = "docker.service"


@operation()
def proof(endpoint: EndpointPlan, gpus: int) -> Commands:
    """Have it proven that containers on the host see its GPUs, and that `endpoint` answers.

    Containers must see them by `--gpus`, by CDI, and still after `systemctl daemon-reload`; they are made from the
    endpoint's own image, and nothing is pulled. That holds until Docker is started anew. The endpoint must be healthy,
    list its model and complete a chat; that holds for this plan and this start of its unit.

    + gpus: how many GPUs the host has
    """
    digest = f"{endpoint.image} {gpus}"
    argv = [PYTHON, PROVE, "gpus", f"--image={endpoint.image}", f"--count={gpus}"]
    name = gpus_proof(endpoint)
    argv += [f"--out={proof_of(name)}", f"--unit={DOCKER}", f"--digest={digest}"]
    yield from _proven(name, DOCKER, digest, argv)
    yield from _proven(f"endpoint-{endpoint.name}", endpoint.unit, endpoint.digest, prove_argv(endpoint))


def _proven(name: str, unit: str, digest: str, argv: Sequence[str]) -> Commands:
    path = proof_of(name)
    proof: ProofValue = host.get_fact(Proof, path=path, unit=unit)
    if proof.holds(digest):
        host.noop(f"proven at {proof.record.get('at')}")
        return

    def prove(host: Host) -> None:
        answer = run(host, *(QuoteString(argument) for argument in argv))
        for line in answer.lines:
            say(host, line)
        if not answer.ok:
            listed = "\n".join(f"    {line}" for line in answer.errors)
            raise OperationError(f"{host.name}: {name} does not do what it should.\n{listed}".rstrip())

    yield work(prove, f"prove {name}")
