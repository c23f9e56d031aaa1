"""`python3 -m sglang.launch_server`: check arguments, GPUs and model, then serve."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn

from .arguments import parse, shown
from .gpus import visible_gpus
from .server import Served, serve

KNOWN = Path(__file__).with_name("known.json")


def say(text: str) -> None:
    print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}", flush=True)


def fail(text: str) -> NoReturn:
    """Exit as SGLang does when one of its processes fails: it kills all of them and itself."""
    say(f"Scheduler hit an exception: Traceback (most recent call last):\n{text}\n")
    say("Received sigquit from a child process. It usually means the child failed.")
    raise SystemExit(137)


def context_length(options: Namespace, model: Path) -> int:
    """Return the context length in tokens. Exit if SGLang's own check of the configuration would fail."""
    file = model / "config.json"
    if not file.is_file():
        fail(f"OSError: {model} does not appear to have a file named config.json.")
    config: dict[str, Any] = json.loads(file.read_text())
    native = int(config.get("text_config", config)["max_position_embeddings"])
    given = options.context_length
    if given is None or given <= native:
        return int(given or native)
    warning = (
        f"Warning: User-specified context_length ({given}) is greater than the derived context_length ({native}). "
        "This may lead to incorrect model outputs or CUDA errors. Note that the derived context_length may differ from "
        "max_position_embeddings in the model's config."
    )
    variable = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"
    if os.environ.get(variable, "").lower() not in ("1", "true", "yes", "y"):
        fail(f"ValueError: {warning} To allow overriding this maximum, set the env var {variable}=1")
    say(warning)
    return int(given)


def main() -> None:
    options = parse(sys.argv[1:], json.loads(KNOWN.read_text()))
    say(f"server_args={shown(options)}")
    needed = (options.tp_size or 1) * (options.pp_size or 1)
    # With data-parallel attention the groups share GPUs; otherwise each replica has its own.
    if not options.enable_dp_attention:
        needed *= options.dp_size or 1
    gpus = visible_gpus()
    if gpus == 0:
        fail("RuntimeError: No accelerator (CUDA, XPU, HPU, NPU, MUSA, MPS) or platform plugin is available.")
    if needed > gpus:
        fail("torch.AcceleratorError: CUDA error: invalid device ordinal")
    model = Path(options.model_path)
    served = Served(
        name=options.served_model_name or options.model_path,
        context=context_length(options, model),
        parses_tools=options.tool_call_parser is not None,
        parses_reasoning=options.reasoning_parser is not None,
        key=options.api_key,
        own_template=options.chat_template is not None,
        has_metrics=options.enable_metrics,
    )
    say(f"lab: a stand-in serves {served.name}: {gpus} GPUs visible, {needed} needed, weights not loaded")
    serve(options.host or "127.0.0.1", options.port or 30000, served, say)


if __name__ == "__main__":
    main()
