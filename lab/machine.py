"""Lab hosts: made bare from a cached disk, booted, rebooted, cut from power, looked into.

from lab import machine
host = machine.get("rig1")
host.reset()
host.shell("systemctl is-system-running")
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import disks, limits, network, rootfs, service
from lab.cgroup import Cgroup
from lab.hardware import DEFAULT_GPUS, describe
from lab.locking import exclusive, quietly
from lab.settings import SERVICES, STATE, host_address, host_number
from lab.supervisor import directory

LOGINS = ("ops", "root")

KEY = STATE / "ssh" / "id_ed25519"
"""The private key that opens every lab host, as `ops` and as `root`."""

KNOWN_HOSTS = STATE / "ssh" / "known_hosts"

MARKER = STATE / "README"
"""Says that the state directory is the lab's, and so may be removed as a whole."""

_BOOT_SECONDS = 60.0

# Places whose content changes by itself on a host that nobody touches, and the stores of images and their containers.
VOLATILE = (
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "var/tmp",
    "var/log",
    "var/cache/apt/pkgcache.bin",
    "var/cache/apt/srcpkgcache.bin",
    "var/lib/containerd",
    "var/lib/docker",
    "var/lib/lastlog",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/timers",
    "var/lib/wtmpdb",
    "root/.ansible",
    "home/ops/.ansible",
)

# Beyond this a file is told by its size and time of change: checkpoints would take minutes to read.
_HASHED_BYTES = 16 << 20


class LabError(Exception):
    """Something of the lab did not work; the message says what, and what to do."""


@dataclass(frozen=True)
class Spec:
    """What a lab host is made as."""

    release: str = "trixie"
    gpus: int = DEFAULT_GPUS
    login: str = "ops"


def locked(name: str, say: Callable[[str], None] = quietly) -> contextlib.AbstractContextManager[None]:
    """Let no other process do the thing of this name to this lab meanwhile; waits for one that does. Does not nest."""
    waiting = "waiting for another process that is bringing the lab up or down"
    return exclusive(STATE / "run" / f"{name}.lock", say, waiting)


class Host:
    """One lab host, running or not. Two processes that change the same host wait for each other."""

    def __init__(self, name: str) -> None:
        host_number(name)
        self.name = name
        self.address = host_address(name)
        self.directory = directory(name)
        self.root = self.directory / "root"
        self._service = f"host-{name}"

    def __repr__(self) -> str:
        return f"Host({self.name!r})"

    @property
    def exists(self) -> bool:
        """Whether the host was made, running or not."""
        return (self.directory / "host.json").exists() and self.root.is_dir()

    @property
    def spec(self) -> Spec:
        """What the host was made as. Raises LabError when it was not."""
        try:
            return Spec(**json.loads((self.directory / "host.json").read_text()))
        except FileNotFoundError:
            raise LabError(f"there is no lab host {self.name}: `python -m lab up` makes some") from None

    @property
    def running(self) -> bool:
        """Whether the host is switched on."""
        return service.running(self._service) is not None

    @property
    def boot_log(self) -> str:
        """What the supervisor and nspawn said last."""
        return service.tail(self._service, 40)

    def create(self, spec: Spec, say: Callable[[str], None] = quietly) -> None:
        """Make the host bare as `spec` says and boot it; what was on its disk is gone. Raises LabError."""
        describe(self.name, spec.gpus)
        claim_state()
        tar = rootfs.build(spec.release, say)
        with locked(self.name):
            self._power_off()
            fresh = self.directory / "root.new"
            remove_tree(fresh)
            self.directory.mkdir(parents=True, exist_ok=True)
            rootfs.extract(tar, fresh)
            self._personalise(fresh)
            old = self.directory / "root.old"
            remove_tree(old)
            if self.root.exists():
                self.root.rename(old)
            fresh.rename(self.root)
            self._write_spec(spec)
            self._power_on()
            remove_tree(old)
        # Once bare, the host must be as healthy as a fresh cloud image; later that is the deploy's business.
        state = self.shell("systemctl is-system-running --wait", check=False, timeout=_BOOT_SECONDS).stdout.strip()
        if state != "running":
            failed = self.shell("systemctl --failed --no-legend --plain", check=False).stdout
            raise LabError(f"{self.name} booted to {state!r} instead of 'running':\n{failed}")

    def reset(
        self,
        release: str | None = None,
        gpus: int | None = None,
        login: str | None = None,
        say: Callable[[str], None] = quietly,
    ) -> None:
        """Make the host bare again, as before or with what is given changed. Raises LabError."""
        before = self.spec
        self.create(
            Spec(release or before.release, before.gpus if gpus is None else gpus, login or before.login),
            say,
        )

    def start(self) -> None:
        """Switch the host on and wait until one can log in; nothing happens when it is on. Raises LabError."""
        with locked(self.name):
            self._power_on()

    def stop(self) -> None:
        """Cut the power: every process of the host ends at once, its disk stays."""
        with locked(self.name):
            self._power_off()

    def kill(self) -> None:
        """A power cut: off without warning, then on again."""
        with locked(self.name):
            self._power_off()
            self._power_on()

    def add_disk(self, label: str, size: int) -> None:
        """Build in an empty disk of `size` bytes; takes a power cut. It stays when the host is reset."""
        with locked(self.name):
            self._power_off()
            disks.make(self.directory, label, size)
            self._power_on()

    def set_gpus(self, gpus: int) -> None:
        """Pull or plug cards: takes a power cut, as on a real host. Raises ValueError for an impossible number."""
        describe(self.name, gpus)
        spec = self.spec
        self._write_spec(Spec(spec.release, gpus, spec.login))
        self.kill()

    def reboot(self, timeout: float = _BOOT_SECONDS) -> float:
        """Reboot from inside; returns the seconds until one can log in again. Raises LabError."""
        before, started = self.boot_id(), time.monotonic()
        self.shell("systemctl reboot", check=False)
        while time.monotonic() - started < timeout:
            with contextlib.suppress(LabError, subprocess.TimeoutExpired):
                if self.boot_id() != before:
                    self.wait(timeout)
                    return time.monotonic() - started
            time.sleep(0.1)
        raise LabError(f"{self.name} did not come back within {timeout:.0f} s. Its console:\n{self.boot_log}")

    def remove(self) -> None:
        """Switch the host off and remove all of it."""
        with locked(self.name):
            self._power_off()
            network.remove(self.name)
            remove_tree(self.directory)

    def _forget_nspawn(self) -> None:
        """Remove what nspawn leaves under /run when its machine's power is cut."""
        run = Path("/run/systemd/nspawn")
        remove_tree(run / "propagate" / self.name)
        remove_tree(run / "unix-export" / self.name)
        if self.root.exists():
            disk = self.root.stat()
            (run / "locks" / f"inode-{disk.st_dev}:{disk.st_ino}").unlink(missing_ok=True)

    def boot_id(self) -> str:
        """The id of the present boot. Raises LabError while the host is down."""
        # A shutdown stops every process before it kills it, and nsenter stops with its child: it would wait for ever.
        return self.shell("cat /proc/sys/kernel/random/boot_id", timeout=5).stdout.strip()

    def shell(
        self, command: str, *, check: bool = True, timeout: float = 120.0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a bash command line as root inside the host, past sshd.

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
        """The ssh command that logs in, without a remote command."""
        options = ["BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={KNOWN_HOSTS}", "ConnectTimeout=10"]
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "none", *words, "-i", str(KEY), f"{user or self.spec.login}@{self.address}"]

    def ssh(
        self, command: str, user: str | None = None, *, check: bool = True, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command over ssh, as the host's login user or another. Raises LabError as `shell` does."""
        argv = [*self.ssh_argv(user), "--", command]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        return self._checked(done, command, check)

    def _checked(
        self, done: subprocess.CompletedProcess[str], command: str, check: bool
    ) -> subprocess.CompletedProcess[str]:
        if check and done.returncode:
            raise LabError(f"{self.name}: {command!r} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def files(self) -> dict[str, str]:
        """Every file on the host's disk with what it is: kind, mode, owner, and its content's hash or a link's target.

        Left out are the places in VOLATILE. Files above 16 MiB are told by size and time of change.
        """
        return dict(_fingerprints(self.root))

    def wait(self, timeout: float = _BOOT_SECONDS) -> None:
        """Wait until one can log in over ssh. Raises LabError with the console's end when that takes too long."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.running:
                raise LabError(f"{self.name} went off while booting. Its console:\n{self.boot_log}")
            # /run/nologin keeps users out until the boot has come far enough (pam_nologin(8)).
            with contextlib.suppress(LabError, OSError, subprocess.TimeoutExpired):
                ready = self.shell(
                    "systemctl is-active --quiet systemd-user-sessions && test ! -e /run/nologin", timeout=10
                )
                if ready.returncode == 0 and _answers(self.address):
                    return
            time.sleep(0.1)
        raise LabError(f"{self.name} cannot be reached after {timeout:.0f} s. Its console:\n{self.boot_log}")

    def _power_on(self) -> None:
        if not self.exists:
            raise LabError(f"there is no lab host {self.name}: `python -m lab up` makes some")
        if not self.running:
            # After a crash the host may run on without its supervisor, and would be taken for the one that boots now.
            Cgroup(self.name).remove()
        limits.lift()
        network.up()
        network.add(self.name)
        package = str(Path(__file__).parent.parent)
        service.daemonise(
            self._service,
            [sys.executable, "-m", "lab.supervisor", self.name],
            {"PYTHONPATH": package},
            url=self.address,
        )
        self.wait()

    def _power_off(self) -> None:
        service.stop(self._service)
        # The supervisor does this itself; after a crash there may be none.
        Cgroup(self.name).remove()
        self._forget_nspawn()
        disks.detach(self.directory)

    def _write_spec(self, spec: Spec) -> None:
        beside = self.directory / "host.json.new"
        beside.write_text(json.dumps(asdict(spec), indent=1) + "\n")
        beside.replace(self.directory / "host.json")

    def _personalise(self, root: Path) -> None:
        """What makes this host itself: name, machine id, ssh keys, the way to its lab's mirror."""
        rootfs.name_mirror(root)
        _place(root / "etc/hostname", f"{self.name}\n")
        _place(root / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n::1 localhost ip6-localhost\n")
        _place(root / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
        _place(
            root / "etc/resolv.conf", "# No name server: a lab host reaches the lab's own network and nothing else.\n"
        )
        host_key = self.directory / "ssh_host_ed25519_key"
        if not host_key.exists():
            _generate_key(host_key, f"root@{self.name}")
        _place(root / "etc/ssh/ssh_host_ed25519_key", host_key.read_text(), 0o600)
        _place(root / "etc/ssh/ssh_host_ed25519_key.pub", host_key.with_suffix(".pub").read_text())
        authorized = login_key().with_suffix(".pub").read_text()
        _place(root / "root/.ssh/authorized_keys", authorized, 0o600)
        home = root / "home/ops"
        _place(home / ".ssh/authorized_keys", authorized, 0o600)
        owner = home.stat()
        for path in (home / ".ssh", home / ".ssh/authorized_keys"):
            os.chown(path, owner.st_uid, owner.st_gid)
        for path in (root / "root/.ssh", home / ".ssh"):
            path.chmod(0o700)


def get(name: str) -> Host:
    """The lab host of that name, which may not exist yet. Raises ValueError for a name that no lab host can have."""
    return Host(name)


def existing() -> list[Host]:
    """All hosts that were made, in the order of their numbers."""
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
    """The host of that name, running: made when it does not exist, booted when it is off. Raises LabError.

    An existing host stays as it was made; `reset` changes it.
    """
    host = Host(name)
    if host.exists:
        host.start()
    else:
        host.create(Spec(release, gpus, login), say)
    write_known_hosts()
    return host


def state_is_ours() -> bool:
    """Whether the state directory is the lab's, or not there, or holds nothing that the lab does not put there."""
    if MARKER.exists() or not STATE.exists():
        return True
    return {path.name for path in STATE.iterdir()} <= {"run", "log", *SERVICES}


def claim_state() -> None:
    """Mark the state directory as the lab's. Raises LabError when it holds what is not."""
    if not state_is_ours():
        raise LabError(f"{STATE} holds something else than a lab: point RIGUP_LAB_STATE to an empty directory")
    STATE.mkdir(parents=True, exist_ok=True)
    if not MARKER.exists():
        MARKER.write_text("The state of rigup's lab; `python -m lab down` removes this directory with all in it.\n")


def login_key() -> Path:
    """The private key for all lab hosts, made at the first call."""
    with locked("login-key"):
        if not KEY.exists():
            KEY.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _generate_key(KEY, "rigup-lab")
    return KEY


def write_known_hosts() -> None:
    """Record the host keys of all existing hosts, for ssh and for the inventory."""
    with locked("known-hosts"):
        lines = []
        for host in existing():
            public = (host.directory / "ssh_host_ed25519_key.pub").read_text().split()
            lines.append(f"{host.address} {public[0]} {public[1]}\n")
        _place(KNOWN_HOSTS.with_suffix(".new"), "".join(lines))
        KNOWN_HOSTS.with_suffix(".new").replace(KNOWN_HOSTS)


def _generate_key(path: Path, comment: str) -> None:
    beside = path.with_name(f"{path.name}.new")
    for stale in (beside, beside.with_suffix(".new.pub")):
        stale.unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(beside)], check=True, timeout=30
    )
    beside.with_name(f"{beside.name}.pub").replace(path.with_suffix(".pub"))
    beside.replace(path)


def _place(path: Path, content: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=mode)
    path.write_text(content)
    path.chmod(mode)


def remove_tree(path: Path) -> None:
    """Remove a directory that may hold a host's disk; what is mounted there is taken off first, never emptied."""
    prefix = f"{path}/"
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        mount = line.split()[4]
        if f"{mount}/".startswith(prefix):
            subprocess.run(["umount", mount], check=True, timeout=30)
    if path.exists():
        shutil.rmtree(path)


def _answers(address: str) -> bool:
    with socket.create_connection((address, 22), timeout=2) as connection:
        return connection.recv(4) == b"SSH-"


def _fingerprints(root: Path) -> Iterator[tuple[str, str]]:
    pending = [root]
    while pending:
        for entry in os.scandir(pending.pop()):
            path = Path(entry.path)
            name = str(path.relative_to(root))
            if name in VOLATILE:
                continue
            info = entry.stat(follow_symlinks=False)
            owner = f"{stat.filemode(info.st_mode)} {info.st_uid}:{info.st_gid}"
            if entry.is_symlink():
                yield name, f"{owner} -> {os.readlink(path)}"
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path)
                yield name, owner
            elif not stat.S_ISREG(info.st_mode):
                yield name, owner
            elif info.st_size > _HASHED_BYTES:
                yield name, f"{owner} {info.st_size} bytes of {info.st_mtime_ns}"
            else:
                yield name, f"{owner} {hashlib.sha256(path.read_bytes()).hexdigest()}"
