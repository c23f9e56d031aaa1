"""The `vllm` command of the lab's image: the real one, with everything a CPU cannot do replaced.

vLLM's own parser checks every argument first. A wrong one gives the usual result: vLLM's message, exit code 2.
"""

import gc
import json
import multiprocessing
import os
import sys
import tempfile
from argparse import Namespace
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

from .gpus import TooFewGpus, check_world_size, visible_gpus
from .swaps import speculates, swap_arguments, swap_memory, swap_variables

DATE_VARIABLE = "LAB_IMAGE_CREATED"
# For tests: an engine that dies at its first request.
PREFIXES_VARIABLE = "LAB_KEEP_PREFIXES"


def say(text: object) -> None:
    """Print one line immediately, so that it appears before vLLM's next log line."""
    print(text, flush=True)


def fail(text: str) -> NoReturn:
    """Exit as vLLM's API server does on an error: the message last, exit code 1."""
    print(text, file=sys.stderr, flush=True)
    raise SystemExit(1)


def parse() -> Namespace:
    """Parse the command line with vLLM's parser, which exits with 2 and a message on an error."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser(description="vLLM CLI")
    serve = ServeSubcommand()
    serve.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    arguments: Namespace = parser.parse_args()
    configure_logging_from_args(arguments)
    serve.validate(arguments)
    # As in ServeSubcommand.cmd: the positional argument overrides --model.
    if getattr(arguments, "model_tag", None) is not None:
        arguments.model = arguments.model_tag
        arguments.model_tag = None
    return arguments


def world_size(arguments: Namespace) -> int:
    """Return how many GPUs of this machine the arguments require."""
    return int(arguments.tensor_parallel_size * arguments.pipeline_parallel_size * (arguments.data_parallel_size or 1))


def prepare_model(arguments: Namespace) -> None:
    """Check the checkpoint against its configuration; make vLLM serve a copy without FP4. Exit with 1 on a mismatch."""
    from . import weights

    model = Path(arguments.model)
    config_file = model / "config.json"
    if not config_file.is_file():
        return  # vLLM prints its own message
    quantization = weights.nvfp4(json.loads(config_file.read_text()))
    if quantization is None:
        return
    patterns = quantization.get("ignore", [])
    say(f"lab: {config_file} asks for {quantization['quant_algo']} with {len(patterns)} ignore patterns")
    for module in ("mlp.gate", "mtp.fc"):
        found = [pattern for pattern in patterns if pattern.rstrip("*").endswith(module)]
        say(f"lab: ignore patterns for {module}: {', '.join(found) if found else 'none'}")
    made = date.fromisoformat(os.environ.get(DATE_VARIABLE, "9999-12-31")[:10])
    excluded = weights.vllm_matcher(quantization)
    try:
        weights.check_ignored(weights.read_headers(model), excluded, made, speculation=speculates(arguments))
    except weights.Unloadable as error:
        module, _, message = str(error).partition(": ")
        fail(
            f"(EngineCore pid={os.getpid()}) ERROR [core.py] EngineCore failed to start.\n"
            f"(EngineCore pid={os.getpid()}) ERROR [core.py] {module}: {message}\n"
            f"lab: this image was made on {made}; its vLLM reads {module} as packed FP4, "
            "and no ignore pattern of config.json prevents it\n"
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
        )
    target = Path(tempfile.mkdtemp(prefix="lab-model-"))
    count = weights.lay_out(model, target)
    say(f"lab: quantization NVFP4 -> bfloat16, {count} weights, in {target} (no FP4 on a CPU)")
    if arguments.served_model_name is None:
        arguments.served_model_name = [arguments.model]
    arguments.model = str(target)


def import_once() -> None:
    """Keep vLLM from importing itself in two more processes, which inspect the model's class and run the engine."""
    from vllm import ModelRegistry
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.model_executor.models.qwen3_5 import Qwen3_5MoeForConditionalGeneration
    from vllm.v1.engine import utils

    ModelRegistry.register_model(Qwen3_5MoeForConditionalGeneration.__name__, Qwen3_5MoeForConditionalGeneration)
    utils.get_mp_context = lambda: multiprocessing.get_context("fork")
    listen = entry.setup_server

    def listen_alone(*arguments: Any, **more: Any) -> Any:
        """Keep the port from the engine process, as spawn does.

        Where the server ends it looks for who else has its port, and fails where that process has just been killed.
        """
        address, port = listen(*arguments, **more)
        os.register_at_fork(after_in_child=port.close)
        return address, port

    entry.setup_server = listen_alone
    say("lab: engine process spawn -> fork (vLLM is imported once, for a quick start)")


def serve() -> None:
    """Run `vllm serve` with the given command line."""
    # Objects created by imports live to the end; collecting garbage takes a fifth of the import time.
    gc.disable()
    variables = swap_variables(os.environ)
    arguments = parse()
    try:
        check_world_size(world_size(arguments), visible_gpus())
    except TooFewGpus as error:
        fail(str(error))
    kept = PREFIXES_VARIABLE in os.environ
    swaps = [*variables, *swap_memory(arguments, os.environ), *swap_arguments(arguments, keep_prefixes=kept)]
    for swap in swaps:
        say(swap)
    prepare_model(arguments)
    import_once()
    from vllm.entrypoints.cli.serve import ServeSubcommand

    gc.freeze()
    gc.enable()
    ServeSubcommand.cmd(arguments)


def main() -> None:
    """Serve with the lab's swaps; run all other commands of `vllm` unchanged."""
    if sys.argv[1:2] == ["serve"]:
        serve()
        return
    from vllm.entrypoints.cli.main import main as real

    real()
