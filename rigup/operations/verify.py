"""Verification on the host. It is valid until one of the units that it depends on restarts."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra.api.command import QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.endpoints import Endpoints, EndpointsValue
from rigup.facts.serving import Verification, VerificationValue
from rigup.operations._host import Commands, run, work
from rigup.operations._units import excerpt, show
from rigup.operations._wait import say
from rigup.paths import DOCKER_UNIT, HOST_PROGRAM, PERSISTENCED_UNIT, cards_record, verification_of
from rigup.plan.balancer import NAME
from rigup.plan.model import EndpointPlan
from rigup.render.verify import cards_digest, check_cards_argv, gpus_verification, result_arguments, verify_argv


@operation()
def cards_verified(endpoint: EndpointPlan, gpus: int) -> Commands:
    """Verify that the GPUs of `endpoint` compute, keep and copy data correctly, before an engine uses them.

    It is done once for an image and its cards, and again after a boot, but only on a host that serves nothing: it needs
    the memory of the cards.

    + gpus: how many GPUs the host has
    """
    endpoints: EndpointsValue = host.get_fact(Endpoints)
    if endpoints.active:
        host.noop("an endpoint uses the GPUs")
        return
    path, digest = cards_record(endpoint.name), cards_digest(endpoint)
    yield from _recorded(
        f"the GPUs of {endpoint.name}", path, PERSISTENCED_UNIT, digest, check_cards_argv(endpoint, gpus)
    )


@operation()
def verified(endpoint: EndpointPlan, gpus: int) -> Commands:
    """Verify that containers on the host see its GPUs, and that `endpoint` does what its recipe is for.

    Containers must see the GPUs with `--gpus`, with CDI, and still after `systemctl daemon-reload`; they use the
    endpoint's own image, and nothing is pulled. That is valid until Docker restarts. The verification of the endpoint
    is valid for this plan and this start of its unit. If it is reachable from other hosts, it must refuse requests
    without a key.

    + gpus: how many GPUs the host has
    """
    if endpoint.image:
        digest = f"{endpoint.image} {gpus}"
        argv = [HOST_PROGRAM, "verify", "gpus", f"--image={endpoint.image}", f"--count={gpus}"]
        name = gpus_verification(endpoint.image)
        yield from _verified(name, DOCKER_UNIT, digest, [*argv, *result_arguments(name, DOCKER_UNIT, digest)])
    yield from _verified(f"endpoint-{endpoint.name}", endpoint.unit, endpoint.digest, verify_argv(endpoint))
    if endpoint.public_url:
        argv = [HOST_PROGRAM, "verify", "gateway", f"--url={endpoint.public_url}", f"--health={endpoint.ready_path}"]
        name, unit, digest = f"gateway-{endpoint.name}", endpoint.gateway, endpoint.public_url
        argv += [f"--key-file={endpoint.key_file}", *result_arguments(name, unit, digest)]
        yield from _verified(name, unit, digest, argv)


@operation()
def balancer_verified(url: str, unit: str, key_file: str, digest: str) -> Commands:
    """Verify that the load balancer at `url` refuses requests without a key, admits a key, and has an endpoint.

    It is valid for this start of its unit and this `digest` of its configuration.

    + key_file: the file with a key for clients
    """
    name = f"gateway-{NAME}"
    argv = [HOST_PROGRAM, "verify", "gateway", f"--url={url}", "--health=/health", f"--key-file={key_file}"]
    yield from _verified(name, unit, digest, [*argv, *result_arguments(name, unit, digest)])


def _verified(name: str, unit: str, digest: str, argv: Sequence[str]) -> Commands:
    yield from _recorded(name, verification_of(name), unit, digest, argv)


def _recorded(name: str, path: str, unit: str, digest: str, argv: Sequence[str]) -> Commands:
    verification: VerificationValue = host.get_fact(Verification, path=path, unit=unit)
    if verification.holds(digest):
        host.noop(f"verified at {verification.record.get('at')}")
        return

    def verify(host: Host) -> None:
        result = run(host, *map(QuoteString, argv))
        for line in result.lines:
            say(host, line)
        if not result.ok:
            errors = [f"    {line}" for line in result.errors]
            log = excerpt(host, unit, show(host, unit).invocation, result.errors)
            raise OperationError(
                "\n".join(
                    [f"{host.name}: {name} failed its verification.", *errors, f"The last lines of {unit}:", *log]
                )
            )

    yield work(verify, f"verify {name}")
