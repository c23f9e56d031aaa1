"""Read a host's modprobe configuration from its disk: modprobe.d(5) as kmod reads it."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lab.host.rooted import resolve

# In kmod's order: a file hides the files of the same name in the directories after it.
DIRECTORIES = ("etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
_NOTHING = {"/bin/true", "/bin/false", "/usr/bin/true", "/usr/bin/false", "true", "false"}


@dataclass
class Configuration:
    """Module names with `_`, as the kernel spells them; options in the order in which modprobe passes them."""

    blacklist: set[str] = field(default_factory=set)
    disabled: set[str] = field(default_factory=set)
    options: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def module_options(self, module: str) -> dict[str, str]:
        """Return the module's options; the last value of an option wins, as in the kernel."""
        return dict(self.options.get(module, []))


def kernel_name(module: str) -> str:
    """Return a module's name as the kernel spells it: to modprobe `-` and `_` are the same."""
    return module.replace("-", "_")


def _files(root: Path) -> list[Path]:
    chosen: dict[str, Path] = {}
    for directory in DIRECTORIES:
        for path in resolve(root, directory).glob("*.conf"):
            chosen.setdefault(path.name, resolve(root, f"{directory}/{path.name}"))
    return [chosen[name] for name in sorted(chosen)]


def _lines(text: str) -> Iterable[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.split(None, 2)


def _assignments(text: str) -> list[tuple[str, str]]:
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    pairs = []
    for word in words:
        key, separator, value = word.partition("=")
        # A flag without a value means true to a boolean parameter.
        pairs.append((key, value if separator else "1"))
    return pairs


def read(root: Path, cmdline: str = "") -> Configuration:
    """Return the configuration of the disk under `root`, with what the kernel command line adds."""
    found = Configuration()
    for path in _files(root):
        # kmod too ignores a link to /dev/null, a dangling link, and a directory.
        if not path.is_file():
            continue
        for words in _lines(path.read_text(errors="replace")):
            _apply(found, words)
    for word in cmdline.split():
        key, separator, value = word.partition("=")
        module, dot, option = key.partition(".")
        if key == "modprobe.blacklist":
            found.blacklist.update(kernel_name(name) for name in value.split(",") if name)
        elif dot and separator:
            found.options.setdefault(kernel_name(module), []).append((option, value))
    return found


def _apply(found: Configuration, words: list[str]) -> None:
    match words:
        case ["blacklist", module, *_]:
            found.blacklist.add(kernel_name(module))
        case ["install", module, command] if command.split()[0] in _NOTHING:
            found.disabled.add(kernel_name(module))
        case ["options", module, text]:
            found.options.setdefault(kernel_name(module), []).extend(_assignments(text))
        case _:
            pass
