"""What a host's boot loader does next, and what the kernel was told by it: parsers without side effects."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rigup.text import from_json

IMAGE, INITRD = "vmlinuz-", "initrd.img-"
# What packages, DKMS and people put behind the name of a kernel or initrd to keep an old one.
BACKUP = re.compile(r"(\.(old|bak|orig|save|new|tmp|dpkg-\w+|ucf-\w+|rpm\w+|sig)(-\w+)?|~)+$")
SIGNED = re.compile(r"(\.efi)?\.signed$")

ENTRIES, MENU, ENVIRONMENT = "--- entries", "--- menu", "--- environment"
LOADER = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
PINS = ("/etc/kernel/next-boot-pin", "/etc/kernel/proxmox-boot-pin")
GRUB_DEFAULTS, GRUB_ARGUMENTS = "/etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT"
READ_NEXT = (
    f"grep -H . {' '.join(PINS)} 2>/dev/null; echo '{ENTRIES}'; "
    # Only the loader that booted the machine writes this variable (systemd.io/BOOT_LOADER_INTERFACE), in UTF-16.
    f"cat {LOADER} 2>/dev/null | tr -d '\\0' | grep -ao systemd-boot && bootctl list --json=short 2>/dev/null; "
    f"echo '{ENVIRONMENT}'; cat /boot/grub/grubenv 2>/dev/null; echo; echo '{MENU}'; "
    r"grep -E '^\s*(set default=|(menuentry|submenu|linux(efi|16)?)\s|\})|\{\s*$' /boot/grub/grub.cfg 2>/dev/null"
    " || true"
)
"""A command that prints what `next_boot` parses."""


@dataclass(frozen=True)
class NextBoot:
    """What boots next: the kernel, and its arguments. None for what is unknown."""

    release: str | None = None
    arguments: tuple[str, ...] | None = None
    systemd_boot: bool = False


@dataclass
class Entry:
    """An entry of the GRUB menu; a submenu has `entries`."""

    title: str = ""
    id: str = ""
    linux: tuple[str, ...] = ()
    entries: list[Entry] = field(default_factory=list)


def grub_drop_in(arguments: Iterable[str]) -> str:
    """Return the text of the drop-in that appends kernel arguments: what others have set stays."""
    words = " ".join(arguments)
    return f'{GRUB_ARGUMENTS}="${{{GRUB_ARGUMENTS}}} {words}"\n' if words else ""


def kernel_arguments(line: str) -> tuple[str, ...]:
    """Return the kernel's arguments in a command line; what follows the word `--` is for init (bootparam(7))."""
    words = line.split()
    return tuple(words[: words.index("--")] if "--" in words else words)


def release_in(path: str, prefix: str = IMAGE) -> str | None:
    """Return the kernel release in the name of an image (or initrd); None for other files, and for backups."""
    name = path.rpartition("/")[2]
    return None if not name.startswith(prefix) or BACKUP.search(name) else SIGNED.sub("", name.removeprefix(prefix))


def version_key(release: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts kernel releases by their numbers: 6.1.0-9 before 6.1.0-30."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", release)]


def next_boot(lines: Iterable[str], kernels: Collection[str]) -> NextBoot:
    """Parse the output of READ_NEXT. `kernels` are the releases that can be booted.

    Proxmox pins a kernel in a file of its own. Otherwise the boot loader says what it will do: systemd-boot by bootctl,
    GRUB by the default in its menu.
    """
    sections: dict[str, list[str]] = {"": []}
    section = sections[""]
    for line in lines:
        if line in (ENTRIES, MENU, ENVIRONMENT):
            section = sections.setdefault(line, [])
        else:
            section.append(line)
    pins = dict(line.partition(":")[::2] for line in reversed(sections[""]))
    pinned = next((pins[path].strip() for path in PINS if pins.get(path, "").strip() in kernels), None)
    if entries := sections.get(ENTRIES):
        found = replace(_of_systemd_boot("\n".join(entries[1:]), kernels), systemd_boot=True)
    else:
        found = _of_grub(sections.get(MENU, []), sections.get(ENVIRONMENT, []), kernels)
    if pinned is None or pinned == found.release:
        return found
    return NextBoot(pinned, systemd_boot=found.systemd_boot)


def _of_systemd_boot(listed: str, kernels: Collection[str]) -> NextBoot:
    """Parse `bootctl list --json=short`, bootctl(1), whose default takes variables and loader.conf into account."""
    try:
        default: Mapping[str, Any] = next(entry for entry in from_json(listed or "[]") if entry["isDefault"])
        words = [str(default.get(key, "")) for key in ("version", "linux", "id")]
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return NextBoot()
    # The version of a unified kernel image is its distribution's.
    named = sorted((kernel for kernel in kernels if any(kernel in word for word in words)), key=len)
    options = default.get("options")
    return NextBoot(named[-1] if named else None, kernel_arguments(options) if isinstance(options, str) else None)


def _of_grub(menu: Sequence[str], environment: Iterable[str], kernels: Collection[str]) -> NextBoot:
    defaults, entries = parse_grub_menu(menu)
    known = dict(line.partition("=")[::2] for line in environment if "=" in line and not line.startswith("#"))
    entry = chosen_entry(entries, _default(defaults, known))
    if entry is None or not entry.linux:
        return NextBoot()
    path, *arguments = entry.linux
    # A backup boots the kernel that it was made of.
    release = SIGNED.sub("", BACKUP.sub("", path.rpartition("/")[2])).removeprefix(IMAGE)
    return NextBoot(release if release in kernels else None, tuple(arguments))


def _default(defaults: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the value of GRUB's variable `default`: `grub-reboot` sets `next_entry`, `grub-set-default` the other."""
    once = [value for value in defaults if "next_entry" in value and environment.get("next_entry")]
    always = [value for value in defaults if "next_entry" not in value]
    value = once[0] if once else always[-1] if always else ""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: environment.get(match[1], ""), value)


def parse_grub_menu(lines: Iterable[str]) -> tuple[list[str], list[Entry]]:
    """Parse the values that grub.cfg gives `default`, unexpanded, and the entries of its menu."""
    defaults: list[str] = []
    root = Entry()
    # Functions and other blocks have braces as well.
    open_blocks: list[Entry | None] = [root]
    for line in lines:
        words = _words(line)
        if line.strip().startswith("set default="):
            defaults.append(words[1].partition("=")[2])
        elif words[:1] in (["menuentry"], ["submenu"]):
            at = [index for index, word in enumerate(words) if word == "--id" or "menuentry_id_option" in word]
            entry = Entry("".join(words[1:2]), "".join(words[at[0] + 1 : at[0] + 2]) if at else "")
            parent = next((block for block in reversed(open_blocks) if block), root)
            parent.entries.append(entry)
            if words[-1] == "{":
                open_blocks.append(entry)
        elif words[:1] in (["linux"], ["linuxefi"], ["linux16"]):
            if (block := open_blocks[-1]) and not block.linux:
                block.linux = kernel_arguments(line)[1:]
        elif line.strip().startswith("}"):
            del open_blocks[max(1, len(open_blocks) - 1) :]
        elif line.rstrip().endswith("{"):
            open_blocks.append(None)
    return defaults, root.entries


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def chosen_entry(entries: Sequence[Entry], default: str) -> Entry | None:
    """Return the entry that boots by default, as GRUB finds it (grub-core/normal/menu.c).

    `default` names an entry by number, title or ID; `>` separates the entries of submenus, and `>>` is that character.
    GRUB boots the first entry of a menu without that entry.
    """
    parts = [part.replace("\0", ">") for part in default.replace(">>", "\0").split(">")]
    chosen = None
    while entries:
        part = parts.pop(0) if parts else ""
        named = [entry for entry in entries if part and part in (entry.id, entry.title)]
        if part.isdecimal() and int(part) < len(entries):
            named = [entries[int(part)]]
        chosen = (named or entries)[0]
        entries = chosen.entries
    return chosen
