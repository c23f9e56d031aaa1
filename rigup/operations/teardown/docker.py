"""Remove our containers, volumes and images from Docker, and Docker's data if a deploy installed Docker."""

from __future__ import annotations

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.host_config import USUAL_STORE
from rigup.ledger import Ledger
from rigup.operations._host import Commands, check, run, work
from rigup.operations.teardown.kept import Kept, some


@operation()
def docker_emptied(ledger: Ledger, kept: Kept) -> Commands:
    """Remove our images, and all data of a Docker that a deploy installed and nobody else uses."""
    if not ledger.images and not ledger.volumes and "docker-ce" not in ledger.packages:
        host.noop("no deploy has added anything to Docker")
        return

    def empty(host: Host) -> None:
        if not run(host, "command -v dockerd").ok:
            return
        run(host, "systemctl start docker.service")
        for name in run(host, "docker ps --all --filter label=rigup.plan --format '{{.Names}}'").lines:
            run(host, "docker rm --force --", QuoteString(name))
        for volume in ledger.volumes:
            run(host, "docker volume rm --force --", QuoteString(volume))
        for image in ledger.images:
            run(host, "docker image rm --", QuoteString(image))
        if "docker-ce" not in ledger.packages:
            return
        for kind, listing in (
            ("container", "docker ps --all --format '{{.Names}}'"),
            ("volume", "docker volume ls --format '{{.Name}}'"),
            ("image", "docker image ls --format '{{.Repository}}:{{.Tag}}'"),
        ):
            result = check(host, listing, failing=f"could not list what Docker on {host.name} holds")
            kept.docker += [f"{kind} {name}" for name in dict.fromkeys(result.lines) if name.strip()]
        if kept.docker:
            kept.notes.append(f"Docker itself, which holds {some(kept.docker)}")
            return
        check(
            host,
            "systemctl stop docker.socket docker.service containerd.service",
            failing=f"could not stop Docker on {host.name}",
        )
        for path in (USUAL_STORE.data, USUAL_STORE.containerd):
            # Renamed first: Docker can start with an empty store, but not with half of one.
            aside = QuoteString(f"{path}.rigup-old")
            check(
                host,
                StringCommand("rm -rf --", aside, "&& { test ! -d", QuoteString(path)),
                StringCommand("|| mv -T --", QuoteString(path), aside, "; } && rm -rf --", aside),
                failing=f"could not remove {path} on {host.name}",
            )

    yield work(empty, "empty Docker")
