"""Lab hosts: create one from the cached bare disk, boot it, reboot it, cut its power, look inside.

from lab import machine
host = machine.get("rig1")
host.reset()
host.shell("systemctl is-system-running")
"""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lab import network, service, state
from lab.errors import LabError
from lab.host import disks, limits, rootfs
from lab.host.cgroup import Cgroup
from lab.host.fingerprint import fingerprints
from lab.host.hardware import DEFAULT_GPUS, describe
from lab.host.personalize import personalize
from lab.locking import quietly
from lab.mirror.distributions import RELEASES
from lab.settings import STATE, host_address, host_number, namespace
from lab.state import KEY, KNOWN_HOSTS, locked, remove_tree
from rigup import atomic

_BOOT_SECONDS = 300.0


@dataclass(frozen=True)
class Spec:
    """The properties a lab host is created with."""

    release: str = "trixie"
    gpus: int = DEFAULT_GPUS
    login: str = "ops"


class Host:
    """One lab host, running or not. Two processes that change the same host take turns."""

    def __init__(self, name: str) -> None:
        host_number(name)
        self.name = name
        self.address = host_address(name)
        self.directory = state.host_directory(name)
        self.root = self.directory / "root"
        self._service = f"host-{name}"

    def __repr__(self) -> str:
        return f"Host({self.name!r})"

    @property
    def exists(self) -> bool:
        """Whether the host was created, running or not."""
        return (self.directory / "host.json").exists() and self.root.is_dir()

    @property
    def spec(self) -> Spec:
        """The properties the host was created with. Raises LabError when it does not exist."""
        try:
            return Spec(**json.loads((self.directory / "host.json").read_text()))
        except FileNotFoundError:
            raise LabError(f"lab host {self.name} does not exist: `python -m lab up` creates hosts") from None

    @property
    def running(self) -> bool:
        """Whether the host is switched on."""
        return service.running(self._service) is not None

    @property
    def boot_log(self) -> str:
        """The last lines that the supervisor and nspawn printed."""
        return service.tail(self._service, 40)

    def create(self, spec: Spec, say: Callable[[str], None] = quietly) -> None:
        """Create a bare host as `spec` says, replacing what was on its disk, and boot it. Raises LabError."""
        describe(self.name, spec.gpus)
        distribution = RELEASES[spec.release]
        if spec.login not in distribution.logins:
            logins = " or ".join(distribution.logins)
            raise LabError(f"{self.name}: {distribution.name} has no login {spec.login}, only {logins}")
        state.claim()
        tar = rootfs.build(spec.release, say)
        with locked(self.name):
            self._power_off()
            fresh = self.directory / "root.new"
            remove_tree(fresh)
            self.directory.mkdir(parents=True, exist_ok=True)
            rootfs.extract(tar, fresh)
            host_key = self.directory / "ssh_host_ed25519_key"
            if not host_key.exists():
                state.generate_key(host_key, f"root@{self.name}")
            personalize(fresh, self.name, host_key, state.login_key().with_suffix(".pub"))
            old = self.directory / "root.old"
            remove_tree(old)
            if self.root.exists():
                self.root.rename(old)
            fresh.rename(self.root)
            self._write_spec(spec)
            self._power_on()
            remove_tree(old)
        # A bare host must be as healthy as a fresh cloud image; from then on its state depends on deploys.
        system = self.shell("systemctl is-system-running --wait", check=False, timeout=_BOOT_SECONDS).stdout.strip()
        if system != "running":
            failed = self.shell("systemctl --failed --no-legend --plain", check=False).stdout
            raise LabError(f"{self.name} booted to {system!r} instead of 'running':\n{failed}")

    def reset(
        self,
        release: str | None = None,
        gpus: int | None = None,
        login: str | None = None,
        say: Callable[[str], None] = quietly,
    ) -> None:
        """Reset the host to bare, with the given properties changed. Raises LabError."""
        old = self.spec
        release = release or old.release
        if login is None:
            logins = RELEASES[release].logins
            login = old.login if old.login in logins else logins[0]
        self.create(Spec(release, old.gpus if gpus is None else gpus, login), say)

    def start(self) -> None:
        """Switch the host on and wait until ssh accepts logins; do nothing when it is on. Raises LabError."""
        with locked(self.name):
            self._power_on()

    def stop(self) -> None:
        """Cut the power: every process of the host ends at once; its disk stays."""
        with locked(self.name):
            self._power_off()

    def kill(self) -> None:
        """Cut the power without warning, then switch the host on again."""
        with locked(self.name):
            self._power_off()
            self._power_on()

    def add_disk(self, label: str, size: int) -> None:
        """Add an empty disk of `size` bytes, with a power cut. The disk survives a reset of the host."""
        with locked(self.name):
            self._power_off()
            disks.make(self.directory, label, size)
            self._power_on()

    def set_gpus(self, gpus: int) -> None:
        """Change the number of cards, with a power cut. Raises ValueError for an impossible number."""
        describe(self.name, gpus)
        self._write_spec(replace(self.spec, gpus=gpus))
        self.kill()

    def reboot(self, timeout: float = _BOOT_SECONDS) -> float:
        """Reboot from inside; return the seconds until ssh accepts logins again. Raises LabError."""
        before, started = self.boot_id(), time.monotonic()
        self.shell("systemctl reboot", check=False)
        while time.monotonic() - started < timeout:
            with contextlib.suppress(LabError, subprocess.TimeoutExpired):
                if self.boot_id() != before:
                    self.wait(timeout)
                    return time.monotonic() - started
            time.sleep(0.1)
        raise LabError(f"{self.name} did not reboot within {timeout:.0f} s. Its console:\n{self.boot_log}")

    def remove(self) -> None:
        """Switch the host off and remove it."""
        with locked(self.name):
            self._power_off()
            network.remove(self.name)
            remove_tree(self.directory)

    def _forget_nspawn(self) -> None:
        """Remove what nspawn leaves under /run after a power cut."""
        run = Path("/run/systemd/nspawn")
        remove_tree(run / "propagate" / namespace(self.name))
        remove_tree(run / "unix-export" / namespace(self.name))
        if self.root.exists():
            disk = self.root.stat()
            (run / "locks" / f"inode-{disk.st_dev}:{disk.st_ino}").unlink(missing_ok=True)

    def boot_id(self) -> str:
        """Return the id of the current boot. Raises LabError while the host is down."""
        # A shutdown stops processes before it kills them, and nsenter stops with its child: it would wait forever.
        return self.shell("cat /proc/sys/kernel/random/boot_id", timeout=5).stdout.strip()

    def shell(
        self, command: str, *, check: bool = True, timeout: float = 300.0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a bash command line as root inside the host, without ssh.

        Raises LabError when the host is off or, with `check`, when the command fails.
        """
        pid = Cgroup(self.name).init_pid()
        if pid is None:
            raise LabError(f"{self.name} is not running: `python -m lab up` starts it")
        argv = ["nsenter", "--target", str(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        argv += ["--root", "--wd", "--", "/bin/bash", "-c", command]
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        environment |= {"HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, env=environment)
        return self._checked(done, command, check)

    def ssh_argv(self, user: str | None = None) -> list[str]:
        """Return the ssh command that logs in, without a remote command."""
        options = ["BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={KNOWN_HOSTS}", "ConnectTimeout=10"]
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "none", *words, "-i", str(KEY), f"{user or self.spec.login}@{self.address}"]

    def ssh(
        self, command: str, user: str | None = None, *, check: bool = True, timeout: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command over ssh, as the host's login user or another. Raises LabError as `shell` does."""
        argv = [*self.ssh_argv(user), "--", command]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        return self._checked(done, command, check)

    def _checked(
        self, done: subprocess.CompletedProcess[str], command: str, check: bool
    ) -> subprocess.CompletedProcess[str]:
        if check and done.returncode:
            raise LabError(f"{self.name}: {command!r} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def files(self) -> dict[str, str]:
        """Return every file on the host's disk with its kind, mode, owner and content (`fingerprint`)."""
        return dict(fingerprints(self.root))

    def wait(self, timeout: float = _BOOT_SECONDS) -> None:
        """Wait until ssh accepts logins. Raises LabError with the end of the console log on timeout."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.running:
                raise LabError(f"{self.name} powered off while booting. Its console:\n{self.boot_log}")
            # /run/nologin keeps users out until the boot has progressed far enough (pam_nologin(8)).
            with contextlib.suppress(LabError, OSError, subprocess.TimeoutExpired):
                ready = self.shell(
                    "systemctl is-active --quiet systemd-user-sessions && test ! -e /run/nologin", timeout=10
                )
                if ready.returncode == 0 and _answers(self.address):
                    return
            time.sleep(0.1)
        raise LabError(f"{self.name} is unreachable after {timeout:.0f} s. Its console:\n{self.boot_log}")

    def _power_on(self) -> None:
        if not self.exists:
            raise LabError(f"lab host {self.name} does not exist: `python -m lab up` creates hosts")
        if not self.running:
            # After a crash the host may still run without a supervisor, and would be taken for the one that boots now.
            Cgroup(self.name).remove()
        limits.lift()
        network.up()
        network.add(self.name)
        package = str(Path(__file__).parent.parent)
        service.start(
            self._service,
            [sys.executable, "-m", "lab.host.supervisor", self.name],
            {"PYTHONPATH": package},
            url=self.address,
        )
        self.wait()

    def _power_off(self) -> None:
        service.stop(self._service)
        # The supervisor does this too, but after a crash there may be no supervisor.
        Cgroup(self.name).remove()
        self._forget_nspawn()
        disks.detach(self.directory)

    def _write_spec(self, spec: Spec) -> None:
        atomic.write(self.directory / "host.json", json.dumps(asdict(spec), indent=1) + "\n", 0o644)


def get(name: str) -> Host:
    """Return the lab host of that name, which may not exist yet. Raises ValueError for a name no lab host can have."""
    return Host(name)


def existing() -> list[Host]:
    """Return all created hosts, in the order of their numbers."""
    hosts = STATE / "hosts"
    names = sorted(path.name for path in hosts.iterdir()) if hosts.is_dir() else []
    return [host for host in map(Host, names) if host.exists]


def start(
    name: str,
    release: str = "trixie",
    gpus: int = DEFAULT_GPUS,
    login: str = "ops",
    say: Callable[[str], None] = quietly,
) -> Host:
    """Return the host of that name, running: create it if missing, boot it if off. Raises LabError.

    An existing host keeps its properties; `reset` changes them.
    """
    host = Host(name)
    if host.exists:
        host.start()
    else:
        host.create(Spec(release, gpus, login), say)
    write_known_hosts()
    return host


def write_known_hosts() -> None:
    """Record the host keys of all existing hosts, for ssh and for the inventory."""
    with locked("known-hosts"):
        lines = []
        for host in existing():
            public = (host.directory / "ssh_host_ed25519_key.pub").read_text().split()
            lines.append(f"{host.address} {public[0]} {public[1]}\n")
        KNOWN_HOSTS.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(KNOWN_HOSTS, "".join(lines), 0o644)


def _answers(address: str) -> bool:
    with socket.create_connection((address, 22), timeout=2) as connection:
        return connection.recv(4) == b"SSH-"
