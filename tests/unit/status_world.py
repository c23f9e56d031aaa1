"""A host that serves, for `rigup status`: a real sshd, and programs that say what a host with four cards says."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

from loopback_sshd import Sshd

from rigup.facts import serving
from tests.unit.host_world import program

RECORD = {"name": "main", "generation": "abc", "recipe": "vllm-nvfp4-cu130", "gpus": "all", "address": "127.0.0.1",
          "port": 8000, "ready_path": "/health", "served_name": "qwen"}  # fmt: skip
LOAD = {"health": 200, "tokens_per_s": 412.6, "running": 7, "waiting": 0, "kv_cache": 0.31, "last_start_s": None}
UNIT = """LoadState=loaded
ActiveState=active
SubState=running
Result=success
MainPID=4711
InvocationID=6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9
NRestarts=0
ExecMainStartTimestamp=Mon 2026-11-23 20:56:03.000000 UTC"""
GPUS = [
    f"{n}, 92160, 97887, 97, {temperature}, 487.20, 600.00, {reasons}, 00000000:{bus}:00.0, NVIDIA RTX PRO 6000 "
    "Blackwell Workstation Edition"
    for n, bus, temperature, reasons in (
        (0, "01", 71, "0x0000000000000000"),
        (1, "21", 94, "0x0000000000000024"),
        (2, "41", 70, "0x0000000000000001"),
        (3, "61", 70, "0x0000000000000000"),
    )
]
XIDS = [
    "1795420000.500000 rig1 kernel: NVRM: Xid (PCI:0000:41:00): 79, pid=4711, name=VLLM, GPU has fallen off the bus.",
    "1795420800.500000 rig1 kernel: NVRM: Xid (PCI:0000:41:00): 79, pid=4711, name=VLLM, GPU has fallen off the bus.",
]


class Rig:
    """The host `box` of an inventory. Each text can be changed between two looks."""

    def __init__(self, sshd: Sshd) -> None:
        self.sshd, self.programs = sshd, sshd.folder / "programs"
        self.programs.mkdir(exist_ok=True)
        self.say("record", json.dumps(RECORD))
        self.say("units", "/usr/local/lib/systemd/system/llm@main.service:Generation=abc")
        self.say("unit", UNIT)
        self.say("verified", json.dumps({"passed": True, "invocation": "6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9",
                                         "at": "2026-11-23T20:57:00+00:00"}))  # fmt: skip
        self.say("load", json.dumps({"main": LOAD}))
        self.say("gpus", "\n".join(GPUS))
        self.say("xids", "\n".join(XIDS))
        self.say("daily", "")
        told = sshd.folder
        cat, grep = "exec /bin/cat", "exec /bin/grep"
        program(self.programs, "cat",
                f'case "$*" in *endpoint.json*) {cat} {told}/record;; *verify-endpoint*) {cat} {told}/verified;; '
                f'*daily-audit*) {cat} {told}/daily;; *) {cat} "$@";; esac')  # fmt: skip
        program(self.programs, "grep", f'case "$*" in *Generation*) {cat} {told}/units;; *) {grep} "$@";; esac')
        program(self.programs, "systemctl",
                f'case "$*" in *--value*) sed -n s/InvocationID=//p {told}/unit;; show*) {cat} {told}/unit;; '
                "*llm@*) echo 'llm@main.service loaded active running x';; esac")  # fmt: skip
        program(self.programs, "nvidia-smi", f"{cat} {told}/gpus")
        program(self.programs, "journalctl", f"{cat} {told}/xids")
        program(self.programs, "rigup-host", f"{cat} {told}/load")
        patch.object(serving, "HOST_PROGRAM", str(self.programs / "rigup-host")).start()
        sshd.lab()

    def say(self, what: str, text: str) -> None:
        (self.sshd.folder / what).write_text(text + "\n" if text else "")

    @property
    def inventory(self) -> Path:
        return self.sshd.folder / "lab.yaml"
