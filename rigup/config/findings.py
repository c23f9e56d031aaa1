"""The ids of everything that preflight can find, by which a waiver accepts a finding."""

from __future__ import annotations

from collections.abc import Mapping

CANNOT_WORK = False
AT_OWN_RISK = True

FINDINGS: Mapping[str, bool] = {
    "system-release": CANNOT_WORK,
    "system-architecture": CANNOT_WORK,
    "system-init": CANNOT_WORK,
    "login-privilege": CANNOT_WORK,
    "driver-branch": CANNOT_WORK,
    "kernel-headers-name": CANNOT_WORK,
    "packages-held": CANNOT_WORK,
    "packages-removed": CANNOT_WORK,
    "sources-entangled": CANNOT_WORK,
    "docker-snap": AT_OWN_RISK,
    "docker-replaced": AT_OWN_RISK,
    "docker-stopped": AT_OWN_RISK,
    "docker-cdi-file": AT_OWN_RISK,
    "docker-json": CANNOT_WORK,
    "docker-log-options": CANNOT_WORK,
    "driver-run-file": AT_OWN_RISK,
    "driver-unknown": AT_OWN_RISK,
    "driver-cuda": AT_OWN_RISK,
    "driver-serving": CANNOT_WORK,
    "gpus-unsupported": AT_OWN_RISK,
    "gpus-unknown": CANNOT_WORK,
    "gpus-shared": CANNOT_WORK,
    "gpus-missing": CANNOT_WORK,
    "gpus-capability": AT_OWN_RISK,
    "gpus-memory": AT_OWN_RISK,
    "gpus-mig": CANNOT_WORK,
    "gpus-power": CANNOT_WORK,
    "gpus-lanes": AT_OWN_RISK,
    "gpus-bar1": AT_OWN_RISK,
    "memory-size": AT_OWN_RISK,
    "firmware-secure-boot": AT_OWN_RISK,
    "kernel-boot-loader": AT_OWN_RISK,
    "kernel-grub-file": AT_OWN_RISK,
    "kernel-iommu": AT_OWN_RISK,
    "disk-missing": CANNOT_WORK,
    "disk-read-only": CANNOT_WORK,
    "disk-space": AT_OWN_RISK,
    "disk-label": CANNOT_WORK,
    "disk-source": CANNOT_WORK,
    "network-address": CANNOT_WORK,
    "network-port": CANNOT_WORK,
    "network-reach": AT_OWN_RISK,
    "recipe-failed": CANNOT_WORK,
}
"""Whether a waiver may accept the finding. What cannot work would only fail later, in the middle of a deploy."""
