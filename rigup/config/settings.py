"""The settings of a host: one schema that validates `lab.yaml` and `--data`, and documents every key.

All keys are flat and in snake case, so that `pyinfra --data KEY=VALUE` reaches each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from rigup.config.endpoint import Endpoint, Endpoints
from rigup.config.mistakes import mistakes
from rigup.config.types import (
    Address,
    Bool,
    CudaToolkit,
    DriverBranch,
    Fingerprint,
    GpuPower,
    HostPath,
    Identifier,
    KernelArg,
    Label,
    Limit,
    Line,
    ModuleOption,
    Port,
    RecipeOrNeed,
    Seconds,
    SysctlKey,
    SysctlValue,
    Url,
    User,
    Version,
)
from rigup.config.waiver import FindingId, Waiver
from rigup.config.yaml_file import complaint, dotted
from rigup.errors import Finding, InputError


class Connection(BaseModel):
    """How to reach a host. Only the inventory sets these; for one run, pyinfra's own `--data ssh_user=...` works."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Address = Field(
        description="Host name or IP address that ssh connects to, or a `Host` of ssh's configuration.",
        examples=["192.0.2.11"],
    )
    port: Port | None = Field(
        None, examples=[22], description="Port of its sshd; without it, as ssh's configuration says, else 22."
    )
    user: User | None = Field(
        None, description="User to log in as; without it, as ssh's configuration says, else root.", examples=["ops"]
    )
    key: Line | None = Field(
        None,
        description="Private key file; without it, as ssh's configuration says, else ssh's usual keys and agent.",
        examples=["~/.ssh/id_ed25519"],
    )
    known_hosts: Line | None = Field(
        None,
        description="known_hosts file; without it, as ssh's configuration says, else `~/.ssh/known_hosts`.",
        examples=["~/.ssh/known_hosts"],
    )
    sudo: Bool | None = Field(
        None, description="Use sudo, without a password; by default, unless `user` is root.", examples=[True]
    )


class Settings(BaseModel):
    """The desired state of one host. Every key can be set under `defaults`, under a host, or with `--data`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    LISTED_BY: ClassVar[str] = "`rigup settings` lists all"
    # What Ansible and others call our keys.
    SYNONYMS: ClassVar[Mapping[str, str]] = {
        "ansible_host": "address",
        "ansible_port": "port",
        "ansible_user": "user",
        "ansible_ssh_private_key_file": "key",
        "ansible_become": "sudo",
        "hostname": "address",
        "host": "address",
        "ip": "address",
    }
    # Keys of one place that people write in another.
    PLACES: ClassVar[Mapping[str, str]] = {}

    # Keys of earlier versions. Each is refused, and the error names its replacement.
    RENAMED: ClassVar[Mapping[str, str]] = {
        "at_a_time": "max_unavailable",
        "neighbours": "peers",
        "neighbour_port": "peer_port",
        "neighbour_address": "peer_address",
        "endpoints.*.networks": "allowed_networks",
        "endpoints.*.address": "listen",
    }

    recipe: RecipeOrNeed = Field(
        "vllm-nvfp4-cu130",
        description="What to serve: a name from `rigup recipes`, or a need such as `{for: agents, gpus: 4}`. "
        "The default has reliable tool calls.",
    )
    endpoints: Endpoints = Field(
        {"main": Endpoint.model_validate({})},
        description="Endpoints of this host, by name: `{recipe, gpus, listen, port, allowed_networks}` each.",
        examples=[{"main": {"gpus": [0, 1, 2, 3], "port": 8000}}],
    )

    driver_branch: DriverBranch = Field(
        595,
        description="NVIDIA driver branch. The default exists for every supported distribution; older ones do not.",
    )
    driver_version: Version | None = Field(
        None,
        description="Exact driver version of that branch, such as `595.71.05`; without it, the newest, which the lock "
        "then pins.",
        examples=["595.71.05"],
    )
    cuda_toolkit: CudaToolkit = Field(
        "13-2",
        description="CUDA toolkit on the host (nvcc, for builds); `off` for none, as containers bring their own.",
    )
    persistence: Bool = Field(True, description="Keep the driver loaded between jobs; Ubuntu's own unit disables that.")

    kernel_args: tuple[KernelArg, ...] = Field(
        ("iommu=pt", "pcie_aspm=off", "pcie_port_pm=off"),
        description="Kernel arguments. A translating IOMMU hangs NCCL; link power saving drops GPUs off the bus.",
    )
    modprobe_options: dict[Identifier, dict[Identifier, ModuleOption]] = Field(
        {"nvidia_uvm": {"uvm_disable_hmm": 1}},
        description="Kernel module options. HMM breaks CUDA initialization on many hosts with several GPUs.",
    )
    sysctl: dict[SysctlKey, SysctlValue] = Field(
        {"kernel.numa_balancing": 0, "vm.swappiness": 1},
        description="Kernel settings; those that a kernel lacks are skipped. Page migration and swap stall serving.",
    )

    gpu_power: GpuPower = Field(
        {},
        description="Power limit of the GPUs in watts: one for all, `[450, 300]` in their order, or by UUID; set at "
        "each boot. Without it, the cards' own.",
        examples=[450],
    )
    acs: Bool = Field(
        True,
        description="`off` clears PCIe access control (ACS) above the GPUs at each boot, so that they copy to each "
        "other directly. Not on hosts that pass devices to untrusted virtual machines.",
    )

    docker_version: Version | None = Field(
        None, description="Docker version; without it, the newest, which the lock then pins.", examples=["29.6.1"]
    )
    replace_docker: Bool = Field(
        False, description="Replace the distribution's Docker by Docker CE even while other containers run there."
    )
    docker_log_driver: Literal["local", "json-file", "journald", "none"] | None = Field(
        None,
        description="Docker's log driver. Without it, the one in daemon.json, or else `local`: Docker's own default, "
        "json-file, grows without limit.",
        examples=["local"],
    )
    container_toolkit_version: Version | None = Field(
        None,
        description="NVIDIA container toolkit version, 1.20.1 or newer (older ones lose GPUs, or let containers "
        "escape to the host).",
        examples=["1.20.1"],
    )
    container_ulimits: dict[Limit, Annotated[int, Strict(), Field(ge=-1)]] = Field(
        {"memlock": -1, "stack": 67108864},
        description="Limits in the container (bytes, -1 = unlimited). NCCL pins memory and needs deep stacks.",
    )

    model_store: HostPath = Field("/srv/models", description="Directory of the checkpoints, exactly as published.")
    model_disk: Label | None = Field(
        None,
        description="Label of a file system to mount at `model_store`; a rebuild of the host keeps it.",
        examples=["models"],
    )
    model_source: HostPath | None = Field(
        None,
        description="Directory on the host with the checkpoint, or with a copy of a store; used before any download.",
        examples=["/mnt/usb/models"],
    )
    peers: Bool = Field(
        True, description="Download files from the other hosts of the inventory, and serve them to these hosts only."
    )
    peer_port: Port = Field(8730, description="TCP port on which the host serves its peers.")
    peer_address: Address | None = Field(
        None,
        description="Address at which the other hosts reach this one, resolved on the control machine; without it, "
        "the address for ssh.",
        examples=["192.0.2.11"],
    )

    cuda_mirror: Url = Field(
        "https://developer.download.nvidia.com/compute/cuda/repos",
        description="CUDA repositories: contains `debian13/x86_64/` and so on.",
    )
    docker_mirror: Url = Field(
        "https://download.docker.com/linux", description="Docker repositories: contains `debian/` and `ubuntu/`."
    )
    toolkit_mirror: Url = Field(
        "https://nvidia.github.io/libnvidia-container",
        description="NVIDIA container toolkit repository: contains `gpgkey` and `stable/deb/amd64/`.",
    )
    apt_keys: tuple[Fingerprint, ...] = Field(
        (),
        description="Fingerprints of further apt keys to accept, for a mirror that signs its repositories itself; "
        "NVIDIA's and Docker's own keys always are.",
        examples=[["0123456789ABCDEF0123456789ABCDEF01234567"]],
    )
    pypi_index: Url = Field(
        "https://pypi.org/simple",
        description="Python package index for rigup's tools on the host and for engines without a container.",
    )
    python_mirror: Url = Field(
        "https://github.com/astral-sh/python-build-standalone/releases/download",
        description="Python builds for engines without a container, if the host lacks the required version.",
    )
    hub_endpoint: Url = Field(
        "https://huggingface.co", description="Hugging Face hub, or a mirror that speaks its protocol."
    )
    hub_mirror: Url | None = Field(
        None,
        description="Mirror of the hub on the LAN, tried first, over plain HTTP; every file is verified. A host must "
        "reach it or the hub.",
        examples=["http://mirror.lan/hub"],
    )
    registry_mirror: Url | None = Field(
        None, description="Mirror of Docker Hub; without it, Docker Hub itself.", examples=["http://mirror.lan:5000"]
    )

    reboot: Literal["when-needed", "never"] = Field(
        "when-needed", description="`never` stops with an error if a reboot is needed."
    )
    reboot_timeout: Seconds = Field(
        1200, description="Seconds to wait for a reboot; machines with many GPUs take minutes to start."
    )
    ready_timeout: Seconds = Field(
        2700, description="Seconds to wait until an endpoint answers; the first start compiles kernels."
    )
    max_unavailable: Annotated[int, Strict(), Field(ge=1, le=1000)] = Field(
        1, description="Hosts that may stop serving at the same time in one run; the others serve until their turn."
    )
    drain_timeout: Annotated[int, Strict(), Field(ge=0, le=86400)] = Field(
        300,
        description="Seconds that a rebuild, and a switch behind a load balancer, wait for running requests before "
        "they stop an endpoint.",
    )
    stall_timeout: Seconds = Field(
        900,
        description="Seconds without a log line, disk read or change of GPU memory after which a start has stalled.",
    )
    lock: Literal["refuse", "wait"] = Field(
        "refuse", description="If another run is changing the host: `refuse` stops with an error, `wait` waits for it."
    )
    retry: Bool = Field(
        False, description="Retry what failed on the host before and was rolled back: `--data retry=true`."
    )
    fetch_timeout: Annotated[int, Strict(), Field(ge=10)] = Field(
        86400, description="Seconds to wait for a checkpoint in one run; the download itself continues."
    )

    daily_audit: Bool = Field(False, description="Run a timer that checks the host once a day against the last deploy.")
    waivers: dict[FindingId, Waiver] = Field(
        {},
        description="Findings of preflight, recipe checks and the audit that are accepted for a limited time, by id: "
        "`{reason, until}` each.",
        examples=[{"disk-space": {"reason": "old disks until spring", "until": "2027-01-31"}}],
    )

    @model_validator(mode="after")
    def _versions_fit(self) -> Settings:
        if self.driver_version is not None and self.driver_version.split(".")[0] != str(self.driver_branch):
            raise complaint(
                f"driver_version {self.driver_version} is not in driver_branch {self.driver_branch}",
                f"set driver_branch to {self.driver_version.split('.')[0]}, or leave driver_version out",
            )
        # Below: CVE-2025-23266, and 1.19.0 could delete Docker's start job (nvidia-container-toolkit issue 1735).
        if self.container_toolkit_version and _numbers(self.container_toolkit_version) < (1, 20, 1):
            raise complaint(
                f"container_toolkit_version {self.container_toolkit_version} is too old", "use 1.20.1 or newer"
            )
        return self

    @classmethod
    def from_data(cls, data: Mapping[str, Any], host: str = "") -> Settings:
        """Return the settings in a pyinfra host's data (`host.data.dict()`), without the keys of pyinfra and connector.

        Raises InputError with all wrong keys at once. The inventory was checked when it was read, so these come from
        `--data` or from a file under `group_data/`.
        """
        ours = {key: value for key, value in data.items() if not key.startswith(("ssh_", "_", "rigup_"))}
        try:
            return cls.model_validate(ours)
        except ValidationError as error:
            findings = []
            for loc, message, remedy in mistakes(error, cls, ours):
                key = dotted(loc)
                if key in Connection.model_fields:
                    message = "says how to reach a host, so only the inventory can set it"
                    remedy = f"for one run use pyinfra's own key: --data {PYINFRA_KEYS[key]}=..."
                where = f"{host}: --data or group_data" if host else "--data or group_data"
                findings.append(Finding(where, None, key, message, remedy))
            raise InputError(findings) from error


Settings.PLACES = {
    **{
        key: f"write it under an endpoint: `endpoints: {{main: {{{key}: ...}}}}`"
        for key in Endpoint.model_fields.keys() - Settings.model_fields.keys() - Connection.model_fields.keys()
    },
    **dict.fromkeys(
        [*Connection.model_fields, *Settings.model_fields], "write it under the host, or under `defaults` for all hosts"
    ),
}


class AllKeys(Connection, Settings):
    """All keys that a host can have, for suggestions and schemas; never instantiated."""


PYINFRA_KEYS = {
    "address": "ssh_hostname",
    "port": "ssh_port",
    "user": "ssh_user",
    "key": "ssh_key",
    "known_hosts": "ssh_known_hosts_file",
    "sudo": "_sudo",
}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
