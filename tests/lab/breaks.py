"""What tests of the audit break by hand, each with the check that must find it.

Tests break, find and repair a whole table at once: no two breaks in it touch the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass

UNIT = "/usr/local/lib/systemd/system/llm@main.service"
DROP_INS = "/run/systemd/system/llm@main.service.d"
PROGRAMS = "/usr/local/lib/rigup/host/current"
STORE = "/srv/models/nvidia/Qwen3.5-397B-A17B-NVFP4"


@dataclass(frozen=True)
class Break:
    """Something broken by hand: the check that must notice it, and others that necessarily notice it too.

    `undo` repairs what a deploy does not.
    """

    check: str
    command: str
    also: tuple[str, ...] = ()
    undo: str = ""


def removed(package: str) -> str:
    return f"dpkg --remove --force-depends {package} >/dev/null 2>&1"


CONFLICT = (
    "mkdir -p /run/c/DEBIAN && printf 'Package: docker-doc\\nVersion: 1\\nArchitecture: all\\n"
    "Maintainer: x <x@example.org>\\nDescription: x\\n' >/run/c/DEBIAN/control && "
    "dpkg-deb -b /run/c /run/c.deb >/dev/null && dpkg -i /run/c.deb >/dev/null"
)
# A process with a driver library mapped that is deleted from the disk.
HOLD = (
    "import mmap, os, time; f = open('/run/libnvidia-x.so', 'w+b'); f.write(b'x' * 4096); f.flush();"
    " m = mmap.mmap(f.fileno(), 0); os.unlink(f.name); time.sleep(900)"
)
# Another program mounted over a program; the real one is at /run/NAME meanwhile.
SHAM = (
    # Private, or the second mount would propagate to /run/NAME too.
    "touch /run/{name} && mount --bind --make-private {path} /run/{name} && "
    "install -m 755 /dev/stdin /run/{name}-sham <<'END' && mount --bind /run/{name}-sham {path}\n"
    "#!/bin/sh\n{text}\nEND\n"
)
LOADED = "echo {version} >/run/version && mount --bind /run/version /sys/module/nvidia/version"
AS_LOADED = "umount /sys/module/nvidia/version"
AT_WORK = ("serve-reach", "serve-gpus", "serve-container", "verify-health", "verify-models", "verify-completion")

LIGHT = (
    Break("base-packages", removed("python3-venv")),
    Break("base-apt-lock", "rm /etc/apt/apt.conf.d/10rigup-lock-timeout"),
    Break("base-sysctl", "sysctl -qw vm.swappiness=60"),
    Break("base-sysctl-kept", "echo 'vm.swappiness = 60' >>/etc/sysctl.d/60-rigup.conf"),
    Break("base-updates", "rm /etc/apt/apt.conf.d/52rigup-unattended-upgrades"),
    Break("base-restarts", "rm /etc/needrestart/conf.d/rigup.conf"),
    Break("base-programs", f"sed -i '1a # by hand' {PROGRAMS}/rigup_host/wait_ready.py"),
    Break("base-owners", "chmod 777 /etc/apt/sources.list.d", undo="chmod 755 /etc/apt/sources.list.d"),
    Break("kernel-headers", removed("linux-headers-amd64")),
    Break("kernel-module-options-kept", "rm /etc/modprobe.d/rigup.conf"),
    Break("kernel-args-kept", "sed -i s/iommu=pt// /etc/default/grub.d/60-rigup.cfg; update-grub 2>/dev/null"),
    Break("hardware-power", "nvidia-smi -i 0 -pl 300 >/dev/null"),
    Break("hardware-unit", "systemctl disable --quiet rigup-hardware"),
    Break("driver-pin", removed("$(dpkg-query -W -f '${Package}' 'nvidia-driver-pinning-*')")),
    Break("driver-conflicts", CONFLICT),
    Break("driver-repository", "rm /etc/apt/sources.list.d/cuda-*.list"),
    Break("driver-persistence", "systemctl stop nvidia-persistenced", also=("hardware-power", "hardware-unit")),
    Break("cuda-packages", removed("cuda-toolkit-13-2")),
    Break("cuda-nvcc", "rm /etc/profile.d/rigup-cuda.sh"),
    Break("docker-packages", removed("docker-compose-plugin")),
    Break(
        "docker-toolkit-safe",
        "sed -i '/^Package: nvidia-container-toolkit$/,/^$/s/^Version: .*/Version: 1.17.4-1/' /var/lib/dpkg/status",
        also=("docker-toolkit",),
    ),
    Break("docker-repositories", "rm /etc/apt/sources.list.d/docker.sources"),
    Break("docker-running", "systemctl disable --quiet docker.service"),
    Break("model-stamp", f'sed -i \'s/"revision": "./"revision": "x/\' {STORE}/*.verified.json'),
    Break("model-files", f"echo >>$(ls {STORE}/*/tokenizer_config.json)", also=("model-hashes",)),
    Break("model-user", "rm -r /usr/local/lib/rigup/venv"),
    Break("model-unit", "echo '# by hand' >>/etc/systemd/system/model-fetch@.service"),
    Break("model-token", "umask 022 && echo x >/etc/rigup/hub-token"),
    Break("model-peers", "systemd-run --quiet --unit=rigup-peers sleep 900"),
    Break(
        "model-download-ended",
        "systemctl enable --quiet model-fetch@$(cd /etc/rigup/models; ls *.json | sed s/.json//).service",
    ),
    Break("config-plan", 'sed -i \'s/"driver_branch": 595/"driver_branch": 610/\' /etc/rigup/plan.json'),
    Break(
        "config-image",
        "image=$(docker inspect --format '{{.Config.Image}}' llm-main) && docker tag $image other:1 && "
        "docker rmi $image >/dev/null",
    ),
    Break("config-environment", "chmod 644 /etc/rigup/endpoints/main/*/env"),
    Break("config-patches", "sed -i s/NVFP4/FP4/ /etc/rigup/endpoints/main/*/config.json"),
    Break("serve-files", "sed -i s/argument-unknown/other/ /usr/local/lib/rigup/fatal.json"),
    Break("serve-client", "rm /usr/local/lib/rigup/client/requirements.lock"),
    Break("serve-unit", f"echo '# mine' >>{UNIT}"),
    Break(
        "serve-others",
        'cd /etc/rigup/endpoints && cp -a main old && sed -i \'s/: "main"/: "old"/\' old/*/endpoint.json && '
        "systemd-run --quiet --unit=llm@old sleep 900",
    ),
    Break("serve-at-boot", "systemctl disable --quiet llm@main.service"),
    # A person must repair these: a deploy refuses or does not manage them.
    Break(
        "serve-drop-ins",
        f"mkdir -p {DROP_INS} && printf '[Service]\\nNice=1\\n' >{DROP_INS}/mine.conf && systemctl daemon-reload",
        undo=f"rm -r {DROP_INS} && systemctl daemon-reload",
    ),
    Break(
        "preflight-system",
        SHAM.format(name="uname", path="/usr/bin/uname", text='[ "$1" = -m ] && echo aarch64 || exec /run/uname "$@"'),
        undo="umount /usr/bin/uname",
    ),
    Break(
        "preflight-gpus",
        "mount -t tmpfs none /sys/bus/pci/devices",
        also=("driver-gpus",),
        undo="umount /sys/bus/pci/devices",
    ),
    Break(
        "kernel-module-options",
        "echo N >/run/hmm && mount --bind /run/hmm /sys/module/nvidia_uvm/parameters/uvm_disable_hmm",
        undo="umount /sys/module/nvidia_uvm/parameters/uvm_disable_hmm",
    ),
    Break(
        "kernel-args",
        "sed s/iommu=pt// /proc/cmdline >/run/cmdline && mount --bind /run/cmdline /proc/cmdline",
        undo="umount /proc/cmdline",
    ),
    Break(
        "kernel-next",
        "touch /boot/vmlinuz-99.0; update-grub 2>/dev/null",
        undo="rm /boot/vmlinuz-99.0; update-grub 2>/dev/null",
    ),
    Break(
        "driver-safe",
        LOADED.format(version="570.1.1"),
        also=("driver-loaded",),
        undo=AS_LOADED,
    ),
    Break(
        "driver-processes",
        f'systemd-run --quiet --unit=holder python3 -c "{HOLD}"; '
        "until grep -q 'libnvidia-x.so (deleted)' /proc/$(systemctl show --value --property=MainPID holder)/maps; "
        "do sleep 0.1; done",
        undo="systemctl stop holder",
    ),
    Break(
        "serve-reach",
        "systemd-run --quiet --unit=listener python3 -m http.server --bind 127.0.0.2 8000; "
        "until grep -q ' 0200007F:1F40 .* 0A ' /proc/net/tcp; do sleep 0.1; done",
        undo="systemctl stop listener",
    ),
)
HEAVY = (
    Break("model-index", f"rm {STORE}/*/model-00002-of-*.safetensors", also=("model-files", "model-hashes")),
    Break(
        "driver-packages", removed("nvidia-driver-cuda"), also=("driver-gpus", "driver-loaded", "driver-persistence")
    ),
)
# These restart Docker, and the endpoint must serve again before its own files are repaired: one at a time.
DOCKER = (
    Break("docker-config", "sed -i s/nvidia-container-runtime/runc/ /etc/docker/daemon.json"),
    Break(
        "docker-runtime",
        # Docker ends the endpoint, which would start again in a while.
        "echo '{}' >/etc/docker/daemon.json; systemctl restart docker; systemctl stop llm@main",
        also=("docker-config", "docker-log-driver", "serve-running", *AT_WORK),
    ),
)
LIST = (
    Break(
        "serve-settings", f"sed -i 's/^Restart=.*/Restart=no/' {UNIT} && systemctl daemon-reload", also=("serve-unit",)
    ),
    Break("serve-record", 'sed -i \'s/"smoke"/"verify"/\' /etc/rigup/endpoints/main/*/endpoint.json'),
    Break("docker-cdi", "rm /var/run/cdi/nvidia.yaml"),
    Break(
        "docker-toolkit",
        "sed -i '/^Package: nvidia-container-toolkit$/,/^$/s/^Version: .*/Version: 1.99.0-1/' /var/lib/dpkg/status",
    ),
    Break(
        "driver-loaded",
        LOADED.format(version="590.1.1"),
        undo=AS_LOADED,
    ),
    Break(
        "driver-gpus",
        SHAM.format(name="smi", path="/usr/bin/nvidia-smi", text='/run/smi "$@" | head -n -1'),
        undo="umount /usr/bin/nvidia-smi",
    ),
    Break(
        "driver-open-module",
        "cp -a $(/sbin/modinfo -n nvidia) /run/nvidia.ko && "
        "sed -i 's/Dual MIT.GPL/Some licence/' $(/sbin/modinfo -n nvidia)",
        undo="cp -a /run/nvidia.ko $(/sbin/modinfo -n nvidia)",
    ),
    # The size stays the same: only the hash differs.
    Break(
        "model-hashes",
        f"cp -a {STORE}/*/tokenizer_config.json /run/kept && sed -i '1s/^{{/[/' {STORE}/*/tokenizer_config.json",
        undo=f"cp -a /run/kept $(ls {STORE}/*/tokenizer_config.json)",
    ),
)
STOPPED = (Break("serve-running", "systemctl stop llm@main", also=AT_WORK),)

# Commands that break an open gateway, by the check that must notice.
CONFIG = "/etc/rigup/gateways/main.cfg"
GATEWAY_BREAKS = {
    "gateway-files": "systemctl disable --quiet rigup-gateway@main",
    "gateway-key": "nft delete table inet rigup",
    # HAProxy runs without requiring the key, while the file requires it.
    "gateway-refuses": f"cp {CONFIG} /run/gateway.cfg && sed -i 's/ unless known .*/ if FALSE/' {CONFIG} && "
    "systemctl kill --kill-whom=main --signal=USR2 rigup-gateway@main && "
    f"at=$(awk '$1 == \"bind\" {{print $2; exit}}' {CONFIG}) && "
    f"until curl -sf -o /dev/null http://$at/v1/models; do sleep 0.1; done && cp /run/gateway.cfg {CONFIG}",
}
# Together with the others, any key would be accepted.
KEY = Break("gateway-opens", "openssl rand -hex -out /etc/rigup/endpoints/main/key 32")

# Commands that break a load balancer on the host on which it runs, by the check that must notice.
_BALANCER = "/etc/rigup/gateways/load_balancer.cfg"
_TOLD = f'curl -s http://$(awk \'$1 == "bind" {{sub(/.*@/, "", $2); print $2; exit}}\' {_BALANCER})'
BALANCER_BREAKS = {
    # HAProxy runs without requiring a key, while the file requires it.
    "balancer-refuses": f"cp {_BALANCER} /run/balancer.cfg && sed -i 's/ unless known$/ if FALSE/' {_BALANCER} && "
    "systemctl kill --kill-whom=main --signal=USR2 rigup-gateway@load_balancer && "
    f"until {_TOLD}/metrics | grep -q unknown_url; do sleep 0.1; done && cp /run/balancer.cfg {_BALANCER}",
    "balancer-files": "systemctl disable --quiet rigup-gateway@load_balancer",
    "balancer-keys": "chmod 644 /etc/rigup/load-balancer/clients",
    "balancer-opens": "openssl rand -hex -out /etc/rigup/load-balancer/keys/default 32",
    "balancer-backends": "install -D /dev/null /run/rigup-draining/main && "
    f"until {_TOLD}/rigup/servers | grep -q '\"up\":0'; do sleep 0.1; done",
}
