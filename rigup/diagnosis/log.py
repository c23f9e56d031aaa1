"""Read a log as starts: return what the last one says that may tell why it failed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Of journalctl: time, host, program. Programs that speak about the engine are kept, as they tell starts apart.
JOURNAL = re.compile(r"^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ (?!systemd)[\w@.-]+(?:\[\d+\])?: ")

# The first line of a start: vLLM's and SGLang's own, a refused command line, systemd's, docker's.
START = re.compile(
    r"vLLM API server version|server_args=ServerArgs\(|^usage: \S*(vllm|launch_server|api_server|sglang)"
    r"|systemd\[\d+\]: (Starting|\S+: Scheduled restart job)|Unable to find image '"
)
READY = re.compile(r"Application startup complete|The server is fired up and ready|^ready after \d+ s: ")
# Somebody asked it to stop. What follows is no failure.
STOPPED = re.compile(r"signal=SIG(TERM|INT)|[Rr]eceived (signal )?SIG(TERM|INT)\b|systemd\[\d+\]: Stopping ")
# Lines of `wait-ready` and systemd, which speak about the engine.
ABOUT = re.compile(r"systemd\[\d+\]: |^(waiting up to|waited) \d+ |^not ready after ")
# What `wait-ready` reports about a start that has stalled.
STALLED = re.compile(r"the start has stalled: .*; last log line: (.*)")

# How engines and libraries mark information and warnings. NCCL's WARN is an error.
INFORMS = (
    r"(?<!CRITICAL )\b(?:DEBUG|INFO|WARNING)(?::|\s+(?:\d|\[|- ))|- WARNING -|NCCL INFO|\w+Warning: "
    r"|\]:\[W|\b[IW]\d{4} \d\d:"
)
INFORMATION = re.compile(INFORMS)
# Errors after which the program goes on.
HARMLESS = re.compile(
    r"falling back to|[Ff]allback|Skipping tactic|was found but failed to import"
    # PyTorch's inductor, which drops the choice and tries the next.
    r"|_inductor[/.]select_algorithm|for benchmark choice"
    # The driver takes back what it recommended.
    r"|Xid .*: 154, .* to 0x0\b"
    # `docker rm` before a start, where nothing is left of the last one.
    r"|Error response from daemon: No such container:"
)
# PyTorch's inductor tries configurations that do not fit: the reason stands between these lines.
TRIES = re.compile(r"during autotuning")
TRIED = re.compile(r"Ignoring this choice")
TRIED_WITHIN = 30

SGLANG = re.compile(
    r"sglang[/.]|launch_server|ServerArgs|mem-fraction-static|Scheduler hit an exception|fired up and ready"
)
VLLM = re.compile(r"vllm|EngineCore|APIServer pid=|gpu_memory_utilization")

# Python's tracebacks. Frames of these files only pass an error on.
FRAME = re.compile(r'File "([^"]+)", line \d+(?:, in (\S+))?')
PASSES_ON = re.compile(
    r"^<|/torch/(_ops|_tensor|nn/modules/module|nn/functional|utils/_contextlib)\.py|/pydantic/|/contextlib\.py"
    r"|/importlib/|/concurrent/futures/|/asyncio/|/multiprocessing/|/tvm_ffi/|\.so(\.\d+)*$"
)
TRACEBACK = re.compile(r"Traceback \(most recent call last\)")
FRAMES_WITHIN = 60


@dataclass(frozen=True)
class Start:
    """The last start in a log.

    `lines` are all its lines, then those of others. `evidence` are the numbers of those that may tell why it failed.
    `end` is its last line, and `end_at` its number. `ready` says whether it became ready. `since` is the number of the
    log's first line that counts: all before it is about another start, or went well.
    """

    lines: Sequence[str]
    evidence: Sequence[int]
    end: str
    end_at: int
    ready: bool
    since: int
    engine: str | None


def last_start(log: Iterable[str], also: Iterable[str] = ()) -> Start:
    """Return the last start in a log, with what others say about it. A log in which none is recognized is one start."""
    lines = [JOURNAL.sub("", CONTROL.sub("", line).strip()) for line in log]
    first = [at for at, line in enumerate(lines) if START.search(line)]
    # A start that has only begun says nothing yet: the one before it counts.
    starts = zip([*reversed(first), 0], [None, *reversed(first)], strict=True)
    begin, end = next((each for each in starts if any(_speaks(line) for line in lines[slice(*each)])), (0, None))
    lines = lines[begin:end]
    ready = max((at for at, line in enumerate(lines) if READY.search(line)), default=-1)
    stopped = next((at for at, line in enumerate(lines) if at > ready and STOPPED.search(line)), len(lines))
    others = [line.strip() for line in also]
    harmless = _tried(lines)
    evidence = [at for at in range(ready + 1, stopped) if at not in harmless and not _informs(lines[at])]
    stalled = [match[1] for line in [*lines, *others] if (match := STALLED.search(line))]
    spoken = [line for line in lines if line and not ABOUT.search(line)]
    last = stalled[-1] if stalled else spoken[-1] if spoken and ready < 0 and stopped == len(lines) else ""
    text = "\n".join(lines)
    engine = "sglang" if SGLANG.search(text) else "vllm" if VLLM.search(text) else None
    evidence += [at for at, line in enumerate(others, len(lines)) if not _informs(line)]
    return Start([*lines, *others], evidence, last, len(lines) - 1, ready >= 0, begin + ready + 1, engine)


def _speaks(line: str) -> bool:
    """Return whether the engine itself says something in this line."""
    return bool(line and not START.search(line) and not ABOUT.search(line))


def _informs(line: str) -> bool:
    """Return whether a line is information or a warning, or says something harmless."""
    return bool(INFORMATION.search(line[:160]) or HARMLESS.search(line) or STALLED.search(line))


def _tried(lines: Sequence[str]) -> set[int]:
    """Return the lines that report a configuration that was only tried."""
    found: set[int] = set()
    for at, line in enumerate(lines):
        if TRIED.search(line):
            before = range(max(0, at - TRIED_WITHIN), at + 1)
            found |= {*range(max((each for each in before if TRIES.search(lines[each])), default=at), at + 1)}
    return found


def raised_in(lines: Sequence[str], at: int) -> str:
    """Return the file and function that raised the Python error in a line, as `FILE in FUNCTION`; "" if unknown."""
    for line in reversed(lines[max(0, at - FRAMES_WITHIN) : at]):
        if TRACEBACK.search(line):
            break
        if (frame := FRAME.search(line)) and not PASSES_ON.search(frame[1]):
            return f"{frame[1]} in {frame[2] or ''}"
    return ""
