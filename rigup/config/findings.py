"""The ids of everything that preflight, recipe checks and the audit can find, by which a waiver accepts a finding."""

from __future__ import annotations

from collections.abc import Mapping

CANNOT_WORK = False
AT_OWN_RISK = True

FINDINGS: Mapping[str, bool] = {
    "system-release": CANNOT_WORK,
    "system-architecture": CANNOT_WORK,
    "system-init": CANNOT_WORK,
    "system-container": CANNOT_WORK,
    "login-privilege": CANNOT_WORK,
    "driver-branch": CANNOT_WORK,
    "kernel-headers-name": CANNOT_WORK,
    "packages-held": CANNOT_WORK,
    "packages-removed": CANNOT_WORK,
    "packages-unconfigured": AT_OWN_RISK,
    "sources-entangled": CANNOT_WORK,
    "apt-refuses": CANNOT_WORK,
    "docker-snap": AT_OWN_RISK,
    "docker-replaced": AT_OWN_RISK,
    "docker-stopped": AT_OWN_RISK,
    "docker-cdi-file": AT_OWN_RISK,
    "docker-json": CANNOT_WORK,
    "docker-log-options": CANNOT_WORK,
    "docker-flags": CANNOT_WORK,
    "driver-run-file": AT_OWN_RISK,
    "driver-unknown": AT_OWN_RISK,
    "driver-disabled": CANNOT_WORK,
    "driver-cuda": AT_OWN_RISK,
    "driver-serving": CANNOT_WORK,
    "gpus-unsupported": AT_OWN_RISK,
    "gpus-unknown": CANNOT_WORK,
    "gpus-shared": CANNOT_WORK,
    "gpus-missing": CANNOT_WORK,
    "gpus-capability": AT_OWN_RISK,
    "gpus-memory": AT_OWN_RISK,
    "gpus-bound": CANNOT_WORK,
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
    "disk-inodes": AT_OWN_RISK,
    "disk-label": CANNOT_WORK,
    "disk-source": CANNOT_WORK,
    "network-address": CANNOT_WORK,
    "network-port": CANNOT_WORK,
    "network-reach": AT_OWN_RISK,
    "recipe-failed": CANNOT_WORK,
}
"""Whether a waiver may accept the finding. What cannot work would only fail later, in the middle of a deploy."""

RECIPE_FINDINGS = (
    "recipe-agents-parser", "recipe-agents-speculation", "recipe-agents-tool-calls", "recipe-architecture",
    "recipe-b12x", "recipe-batched-tokens", "recipe-chunked-prefill", "recipe-context", "recipe-dcp",
    "recipe-dcp-kv-heads", "recipe-declared", "recipe-draft-model", "recipe-drafter", "recipe-engine-range",
    "recipe-engine-unknown", "recipe-expert-parallel", "recipe-gpus", "recipe-hardware-driver",
    "recipe-hardware-gpus", "recipe-ignore-patterns", "recipe-kv-cache", "recipe-memory", "recipe-memory-share",
    "recipe-model-engine", "recipe-nccl-empty", "recipe-nccl-graph", "recipe-nodes", "recipe-option",
    "recipe-quantization", "recipe-reasoning-parser", "recipe-rope-override", "recipe-schema", "recipe-sm120",
    "recipe-speculation-depth", "recipe-state-blocks", "recipe-thinking", "recipe-tool-parser", "recipe-tp-heads",
    "recipe-tp-kv-heads", "recipe-value", "recipe-variable", "recipe-venv-version", "recipe-visible-devices",
    "recipe-vision-options", "recipe-yarn-factor",
)  # fmt: skip
"""What `rigup check` finds in recipes."""

AUDIT_CHECKS = (
    "balancer-files", "balancer-keys", "balancer-opens", "balancer-refuses", "balancer-backends",
    "base-packages", "base-programs", "base-owners", "base-apt-lock", "base-sysctl", "base-sysctl-kept",
    "base-updates", "base-restarts",
    "config-plan", "config-environment", "config-patches", "config-image", "config-venv",
    "cuda-packages", "cuda-nvcc",
    "docker-packages", "docker-toolkit", "docker-toolkit-safe", "docker-repositories", "docker-running",
    "docker-config", "docker-runtime", "docker-log-driver", "docker-cdi",
    "driver-packages", "driver-pin", "driver-conflicts", "driver-safe", "driver-repository", "driver-processes",
    "driver-loaded", "driver-open-module", "driver-gpus", "driver-persistence",
    "gateway-files", "gateway-key", "gateway-opens", "gateway-refuses",
    "hardware-power", "hardware-acs", "hardware-unit",
    "kernel-headers", "kernel-module-options", "kernel-module-options-kept", "kernel-next", "kernel-args",
    "kernel-args-kept",
    "model-stamp", "model-files", "model-index", "model-hashes", "model-user", "model-unit", "model-token",
    "model-disk", "model-download-ended", "model-peers",
    "preflight-system", "preflight-gpus",
    "serve-files", "serve-client", "serve-unit", "serve-drop-ins", "serve-settings", "serve-running", "serve-record",
    "serve-others", "serve-at-boot", "serve-process", "serve-reach", "serve-gpus", "serve-container",
    "verify-health", "verify-models", "verify-completion",
    "watch-timer",
)  # fmt: skip
"""The checks of the audit; each is a function in `tests/audit`."""
