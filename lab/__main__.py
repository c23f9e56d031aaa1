"""The lab's command line, `python -m lab`."""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from lab import hub, machine, tour, world
from lab.errors import LabError
from lab.host.hardware import DEFAULT_GPUS
from lab.hub import faults
from lab.mirror.distributions import LOGINS, RELEASES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary)

    for name, summary in (
        ("up", "bring up the lab; what is already up stays unchanged"),
        ("tour", "bring up the lab, deploy to it, audit it"),
    ):
        up = command(name, summary)
        up.add_argument("--hosts", type=int, metavar="N", help="how many hosts (default: those that exist, or 1)")
        up.add_argument("--release", choices=RELEASES, help="distribution of new hosts (default: trixie)")
        up.add_argument("--login", choices=LOGINS, help="login user of new hosts (default: ops; on noble ubuntu)")
        up.add_argument("--gpus", type=int, metavar="N", help=f"cards in new hosts (default: {DEFAULT_GPUS})")
    command("caches", "build bare disks and images ahead of time; boots no host")
    command("down", "stop the lab and remove everything but the caches")
    command("status", "show what runs and how to reach it")
    reset = command("reset", "reset a host to bare")
    reset.add_argument("name")
    reset.add_argument("--release", choices=RELEASES)
    reset.add_argument("--login", choices=LOGINS)
    reset.add_argument("--gpus", type=int, metavar="N")
    command("reboot", "reboot a host from inside").add_argument("name")
    command("power-cut", "cut a host's power and switch it on again").add_argument("name")
    wrong = command("faults", "make the hub fail on purpose from now on; without arguments, stop that")
    wrong.add_argument(
        "fault",
        nargs="*",
        metavar="FAULT[,path=PATTERN][,times=N][,seconds=S][,value=V]",
        help="; ".join(f"{name}: {what}" for name, what in faults.FAULTS.items()),
    )
    return parser


def _existing(name: str) -> machine.Host:
    host = machine.get(name)
    if not host.exists:
        known = ", ".join(host.name for host in machine.existing()) or "none, `python -m lab up` creates hosts"
        raise LabError(f"lab host {name} does not exist; existing hosts: {known}")
    return host


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "up":
            world.up(options.hosts, options.release, options.login, options.gpus)
        case "tour":
            return tour.tour(lambda: world.up(options.hosts, options.release, options.login, options.gpus))
        case "caches":
            world.fill_caches(print)
        case "down":
            world.down()
        case "status":
            for name, state, detail in world.status():
                print(f"{name:10} {state:5} {detail}".rstrip())
        case "reset":
            host = _existing(options.name)
            host.reset(options.release, options.gpus, options.login, print)
            machine.write_known_hosts()
            world.write_inventory()
            print(f"{host.name} is bare: {RELEASES[host.spec.release].name}, {host.spec.gpus} GPUs")
        case "reboot":
            print(f"{options.name} rebooted in {_existing(options.name).reboot():.1f} s")
        case "faults":
            rules = [faults.parse(text) for text in options.fault]
            faults.write(hub.FAULTS_FILE, rules)
            print(f"the hub follows {len(rules)} rules" if rules else "the hub works normally")
        case "power-cut":
            _existing(options.name).kill()
            print(f"{options.name} booted after a power cut")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 for a failure reported in one line, 2 for wrong arguments."""
    # Show progress immediately, also through a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        return _run(_parser().parse_args(argv))
    except (LabError, OSError, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"lab: `{' '.join(map(str, error.cmd))}` exited with {error.returncode}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
