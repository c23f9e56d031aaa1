#!/usr/bin/env python3
"""The lab's nvidia-ctk: what NVIDIA's unit and rigup use of it, `cdi generate` and `cdi list`."""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/lib/lab-standins")
import lab_gpu

VERSION_FILE = Path("/usr/lib/lab-standins/toolkit-version")
SPECIFICATIONS = (Path("/etc/cdi"), Path("/var/run/cdi"))


class Refusal(Exception):
    """An error that ends the program with exit code 1."""


def log(level: str, message: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    print(f'time="{stamp}" level={level} msg="{text}"', file=sys.stderr)


def options_of(arguments: list[str], valued: set[str], plain: set[str]) -> dict[str, str]:
    """Return options by name, without dashes. Raises Refusal for an unknown one."""
    found: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if name in plain:
            found[name] = value or "true"
        elif name in valued and (following := value if equals else next(words, None)) is not None:
            found[name] = following
        else:
            raise Refusal(f"flag provided but not defined: {word}")
    return found


def specification() -> dict[str, Any]:
    """Return the CDI specification of the GPUs. Raises Refusal without a working driver."""
    try:
        version = lab_gpu.module_version()
        common = [mount_entry(mount) for mount in lab_gpu.common_mounts()]
        gpus = lab_gpu.gpus()
    except lab_gpu.DriverError as error:
        raise Refusal(
            "failed to generate CDI spec: failed to create device CDI specs: failed to construct device spec "
            f"generators: failed to initialize NVML: {error}"
        ) from None
    log("info", f"Using driver version {version}")
    edits = [(gpu, [mount_entry(lab_gpu.gpu_mount(gpu))]) for gpu in gpus]
    devices = [(str(gpu["index"]), mounts) for gpu, mounts in edits]
    devices += [(gpu["uuid"], mounts) for gpu, mounts in edits]
    if gpus:
        devices.append(("all", [mount for _, mounts in edits for mount in mounts]))
    return {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [{"name": name, "containerEdits": {"mounts": mounts}} for name, mounts in devices],
        "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "mounts": common},
    }


def mount_entry(mount: lab_gpu.Mount) -> dict[str, Any]:
    options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
    return {"hostPath": str(mount.host), "containerPath": str(mount.container), "options": options}


def to_yaml(value: Any, indent: int = 0) -> list[str]:
    """Return the lines of a document of objects, lists and strings, indented as NVIDIA's are."""
    pad = " " * indent
    lines: list[str] = []
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str):
                lines.append(f"{pad}{key}: {scalar(item)}")
            else:
                lines += [f"{pad}{key}:", *to_yaml(item, indent // 4 * 4 + 4)]
        return lines
    for item in value:
        if isinstance(item, str):
            lines.append(f"{pad}- {scalar(item)}")
        else:
            first, *rest = to_yaml(item, indent + 2)
            lines += [f"{pad}- {first.strip()}", *rest]
    return lines


def scalar(text: str) -> str:
    return f'"{text}"' if text.isdigit() else text


def cdi_generate(arguments: list[str]) -> None:
    options = options_of(arguments, {"output", "format", "mode", "driver-root", "device-name-strategy"}, set())
    document = specification()
    output = options.get("output", os.environ.get("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH", ""))
    if options.get("format", "json" if output.endswith(".json") else "yaml") == "json":
        text = json.dumps(document, separators=(",", ":"))
    else:
        text = "\n".join(["---", *to_yaml(document), ""])
    if not output:
        print(text, end="")
        return
    path = lab_gpu.on_host(Path(output)) if Path(output).is_absolute() else Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)
    log("info", f"Generated CDI spec with version {document['cdiVersion']}")


def cdi_list(arguments: list[str]) -> None:
    options_of(arguments, {"spec-dir"}, set())
    devices: set[str] = set()
    for directory in SPECIFICATIONS:
        for path in sorted(lab_gpu.on_host(directory).glob("*.yaml")):
            text = path.read_text()
            kind = re.search(r"^kind: (\S+)$", text, re.MULTILINE)
            names = re.findall(r'^    - name: "?([^"\n]+)"?$', text, re.MULTILINE)
            devices |= {f"{kind[1]}={name}" for name in names} if kind else set()
    log("info", f"Found {len(devices)} CDI devices")
    for device in sorted(devices):
        print(device)


def create_device_nodes(arguments: list[str]) -> None:
    # Lab hosts have no device nodes: containers get files (lab_gpu).
    options_of(arguments, {"driver-root", "dev-root"}, {"control-devices", "load-kernel-modules", "dry-run"})


COMMANDS: dict[tuple[str, ...], Callable[[list[str]], None]] = {
    ("cdi", "generate"): cdi_generate,
    ("cdi", "list"): cdi_list,
    ("system", "create-device-nodes"): create_device_nodes,
}


def main(arguments: list[str]) -> int:
    if arguments in (["--version"], ["-v"]):
        print(f"NVIDIA Container Toolkit CLI version {lab_gpu.on_host(VERSION_FILE).read_text().strip()}")
        return 0
    while arguments and arguments[0] in ("--debug", "-d", "--quiet"):
        arguments = arguments[1:]
    try:
        if command := COMMANDS.get(tuple(arguments[:2])):
            command(arguments[2:])
        else:
            print(
                "NAME:\n   NVIDIA Container Toolkit CLI - Tools to configure the NVIDIA Container Toolkit\n\nCOMMANDS:"
            )
            print("".join(f"   {' '.join(words)}\n" for words in COMMANDS), end="")
            return 0 if not arguments or arguments[0] in ("help", "-h", "--help") else 3
    except Refusal as refusal:
        log("error", str(refusal))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
