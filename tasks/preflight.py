"""Plan and check all hosts before anything is changed on any of them.

pyinfra prepares the hosts at the same time, each in a greenlet of its own. The first one to arrive here checks the
whole fleet, so that one table shows all problems, and nothing is changed on any host until all of them are solved.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import MappingProxyType

from gevent.lock import RLock
from pyinfra.api.host import Host
from pyinfra.context import host as current_host
from pyinfra.context import state

from rigup.catalog.lint import check_recipe
from rigup.catalog.loader import Catalog, default_catalog
from rigup.catalog.select import recipe_of
from rigup.config.load_balancer import LoadBalancer
from rigup.config.settings import Settings
from rigup.config.waiver import Waiver
from rigup.errors import Finding, InputError, Problem, ProblemsError, RigupError, table_of
from rigup.lock import lockfile, resolve
from rigup.lock.addresses import ip_of
from rigup.lock.lockfile import CheckpointLock
from rigup.plan.balancer import Balancer, Member, balancer_of
from rigup.plan.host import plan_host
from rigup.plan.peers import Peer, fleet_of, peers_of
from rigup.preflight.checks import check
from rigup.preflight.hardware import nvidia_gpus
from rigup.preflight.snapshot import HostCheck
from rigup.ssh.login import login_of_data
from rigup.text import printable
from tasks.context import Context, Refused
from tasks.gather import distro_of, gather, on_each, read_system

_checking = RLock()
_contexts: dict[str, Context] = {}
_refusals: list[RigupError] = []


def preflight() -> Context:
    """Return the context of the current host.

    Raises Refused, and prints one table with the problems of all hosts, if there are any.
    """
    with _checking:
        # Hosts that waited are refused as well, but the table is printed once.
        if not _contexts and not _refusals:
            try:
                _contexts.update(_contexts_of(sorted(state.inventory.get_active_hosts(), key=lambda host: host.name)))
            except RigupError as error:
                _show(error.table(color=sys.stderr.isatty()) if isinstance(error, ProblemsError) else str(error))
                _refusals.append(error)
        if _refusals:
            raise Refused("preflight refused; nothing was changed") from _refusals[0]
    return _contexts[current_host.name]


def _show(text: str) -> None:
    print(printable(f"\n{text}\n", colors=True), file=sys.stderr)


def _contexts_of(hosts: list[Host]) -> dict[str, Context]:
    """Return the contexts of all hosts. Raises ProblemsError, or InputError for wrong settings."""
    catalog = default_catalog()
    if notice := catalog.notice():
        _show(notice)
    settings = {host.name: _settings_of(host) for host in hosts}
    locked = Path(hosts[0].data.rigup_lock)
    today = datetime.now(UTC).date()
    before = lockfile.read(locked)
    _check_recipes(settings, catalog, before.choices, today, before.checkpoints)
    systems = on_each(hosts, read_system)
    distros = {name: distro_of(system, settings[name]) for name, system in systems.items()}
    wants = [resolve.Want(settings[name], distro) for name, distro in distros.items()]
    lock = resolve.ensure(locked, wants, catalog)
    plans = {name: plan_host(name, each, catalog, lock) for name, each in settings.items()}
    # The whole inventory, even if this run is limited to some hosts.
    members = [_member(host, settings.get(host.name) or _settings_of(host)) for host in state.inventory]
    balancer = _balancer_of(hosts[0], members, catalog, lock.choices)
    facts = on_each(hosts, lambda host: gather(host, systems[host.name], plans[host.name], settings[host.name], lock))
    checked = [check(HostCheck(plan, settings[name], facts[name], lock), today) for name, plan in plans.items()]
    if problems := [problem for stopping, _ in checked for problem in stopping]:
        raise ProblemsError(problems)
    if known := [problem for _, others in checked for problem in others]:
        _show(table_of(known, "Warnings; the deploy continues.", color=sys.stderr.isatty()))
    fleet = _resolved(fleet_of((each.name, each.login, each.settings) for each in members))
    return {
        name: Context(
            plan,
            settings[name],
            lock,
            distros[name] or "",
            len(nvidia_gpus(facts[name].hardware.pci)),
            peers_of(name, fleet),
            facts[name].network.proxies,
            balancer=balancer,
        )
        for name, plan in plans.items()
    }


def _resolved(fleet: list[Peer]) -> list[Peer]:
    """Return the hosts with their IP addresses; warn of those that have none, and leave them out."""
    found = [(peer, ip_of(peer.address)) for peer in fleet]
    lost = [peer for peer, address in found if address is None]
    if lost and len(fleet) > 1:
        remedy = "set peer_address to the IP address at which the other hosts reach it"
        why = "does not resolve to an address that the other hosts reach; it shares no files with them"
        warned = [Problem(peer.name, "peers", f"{peer.address} {why}", remedy) for peer in lost]
        _show(table_of(warned, "Warnings; the deploy continues.", color=sys.stderr.isatty()))
    return [replace(peer, address=address) for peer, address in found if address is not None]


def _member(host: Host, settings: Settings) -> Member:
    return Member(host.name, login_of_data(host.name, host.data).address, settings)


def _balancer_of(
    host: Host, members: Sequence[Member], catalog: Catalog, choices: Mapping[str, str]
) -> Balancer | None:
    """Return the inventory's load balancer, which is in the data of every host; None if there is none."""
    written = host.data.get("rigup_load_balancer")
    if written is None:
        return None
    return balancer_of(LoadBalancer.model_validate(written), members, catalog, choices, ip_of)


def _settings_of(host: Host) -> Settings:
    return Settings.from_data(host.data.dict(), host.name)  # type: ignore[no-untyped-call]


def _check_recipes(
    settings: dict[str, Settings],
    catalog: Catalog,
    choices: Mapping[str, str],
    today: date,
    checkpoints: Mapping[str, CheckpointLock] = MappingProxyType({}),
) -> None:
    """Check the recipe of every endpoint, as `rigup check` does, with what is locked of the checkpoints' files.

    Nothing of this asks a host.

    Raises InputError with every recipe that the catalog lacks, that cannot be read, or that cannot work. What is only
    advice is shown.
    """
    findings = []
    files = {key: held.contents for key, held in checkpoints.items()}
    for name, each in settings.items():
        for endpoint, entry in each.endpoints.items():
            key = f"endpoints.{endpoint}.recipe" if entry.recipe else "recipe"
            try:
                recipe = recipe_of(each, endpoint, catalog, choices)
            except InputError as error:
                findings += [_at(name, key, "the recipe cannot be read", finding) for finding in error.findings]
                continue
            except RigupError as error:
                findings.append(Finding(name, None, key, error.message, error.remedy))
                continue
            found = check_recipe(catalog, recipe, files=files)
            wrong = [_with_waiver(finding, each.waivers, today) for finding in found]
            findings += [_at(name, key, f"recipe {recipe.id}", finding) for finding in wrong]
    if advice := [finding for finding in dict.fromkeys(findings) if finding.advice]:
        _show("\n".join(["Advice about recipes; the deploy continues.", *map(str, advice)]))
    if errors := [finding for finding in findings if not finding.advice]:
        raise InputError(errors)


def _with_waiver(finding: Finding, waivers: Mapping[str, Waiver], today: date) -> Finding:
    """Return the finding with what is said about its waiver; advice while that holds."""
    waiver = waivers.get(finding.id)
    if waiver is None:
        return finding
    return replace(
        finding,
        message=f"{finding.message} ({waiver.note(today)})",
        advice=finding.advice or waiver.holds(today),
    )


def _at(host: str, key: str, what: str, finding: Finding) -> Finding:
    """Return a finding about a recipe as one about the host and the setting that chooses it."""
    message = ": ".join(part for part in (what, finding.place, finding.key, finding.message) if part)
    return replace(finding, where=host, line=None, key=key, message=message)
