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

__all__ = ["endpoint", "gpus", "proof_of"]

Commands = Generator[FunctionCommand, None, None]

PROVE = "/usr/local/lib/rigup/prove.py"
DOCKER = "docker.service"


def proof_of(name: str) -> str:
    """Where the proof `name` stands; in /run, so that a boot forgets it."""
    return f"/run/rigup/proof-{name}.json"


@operation()
def gpus(image: str, count: int) -> Commands:
    """Have it proven that containers see the GPUs: by `--gpus`, by CDI, and still after `systemctl daemon-reload`.

    + image: a reference by digest that is on the host; nothing is pulled
    + count: how many GPUs a container must see

    The proof holds until Docker is started anew, or another image is asked for.
    """
    arguments = ["gpus", "--image", image, "--count", str(count)]
    yield from _proven("gpus", DOCKER, f"{image} {count}", arguments)


@operation()
def endpoint(name: str, unit: str, url: str, model: str, digest: str, timeout: float = 600) -> Commands:
    """Have it proven that an endpoint answers: its health, its list of models, a chat completion.

    + url: the endpoint's base, such as `http://127.0.0.1:8000`
    + model: the name under which it serves
    + digest: the plan's; the proof holds for this plan and this start of `unit`
    + timeout: seconds that one request may take
    """
    arguments = ["endpoint", "--url", url, "--model", model, "--timeout", str(int(timeout))]
    yield from _proven(name, unit, digest, arguments)


def _proven(name: str, unit: str, digest: str, arguments: Sequence[str]) -> Commands:
    path = proof_of(name)
    proof: ProofValue = host.get_fact(Proof, path=path, unit=unit)
    if proof.holds(digest):
        host.noop(f"proven at {proof.record.get('at')}")
        return

    def prove(host: Host) -> None:
        argv = ["/usr/bin/python3", PROVE, *arguments, "--out", path, "--unit", unit, "--digest", digest]
        answer = run(host, *(QuoteString(argument) for argument in argv))
        for line in answer.lines:
            say(host, line)
        if not answer.ok:
            listed = "\n".join(f"    {line}" for line in answer.errors)
            raise OperationError(f"{host.name}: {name} does not do what it should.\n{listed}".rstrip())

    yield work(prove, f"prove {name}")
