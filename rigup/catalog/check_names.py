"""Names in an inventory that can be checked without asking a host: recipes and driver branches."""

from __future__ import annotations

from rigup.catalog.loader import Catalog
from rigup.catalog.select import need_of, recipe_of
from rigup.config.inventory import Inventory
from rigup.config.yaml_file import Loc
from rigup.distros.table import BRANCH_CUDA
from rigup.errors import Finding, InputError, RigupError, suggestion

NEWER = 100
"""How far above the newest known driver branch a number is still believed to be a newer one."""


def check_names(inventory: Inventory, catalog: Catalog) -> None:
    """Raise InputError with every recipe that cannot be deployed, and every driver branch that does not exist.

    Each finding has the file and line of the inventory.
    """
    findings = list[Finding]()
    newest = max(BRANCH_CUDA)
    for name, host in inventory.hosts.items():
        branch = host.settings.driver_branch
        if branch not in BRANCH_CUDA and not newest < branch < newest + NEWER:
            known = [str(each) for each in BRANCH_CUDA]
            remedy = suggestion(str(branch), known, f"there are {', '.join(known)}")
            findings.append(inventory.finding(name, ("driver_branch",), f"there is no driver branch {branch}", remedy))
        for endpoint, entry in host.settings.endpoints.items():
            if need_of(host.settings, endpoint):
                # The lock has the choice for it.
                continue
            place: Loc = ("endpoints", endpoint, "recipe") if entry.recipe else ("recipe",)
            try:
                recipe_of(host.settings, endpoint, catalog, {})
            except InputError as error:
                findings += error.findings
            except RigupError as error:
                findings.append(inventory.finding(name, place, error.message, error.remedy))
    if findings:
        raise InputError(findings)
