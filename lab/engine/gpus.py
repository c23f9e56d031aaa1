"""The GPUs that the container sees, and vLLM's error when the arguments need more."""

import os
import subprocess
from collections.abc import Mapping


class TooFewGpus(Exception):
    """vLLM would refuse these arguments on this machine; the message is vLLM's."""


def visible_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many GPUs `nvidia-smi -L` lists and CUDA_VISIBLE_DEVICES does not hide. 0 when it fails."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return 0
    if listing.returncode != 0:
        return 0
    lines = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return len(lines)
    wanted = [word.strip() for word in chosen.split(",")]
    known = [str(number) for number in range(len(lines))]
    # CUDA uses the list up to the first entry that names no device; `nvidia-smi -L` prints the UUIDs.
    count = 0
    for word in wanted:
        if word not in known and not (word.startswith("GPU-") and any(word in line for line in lines)):
            break
        count += 1
    return count


def check_world_size(world_size: int, gpus: int) -> None:
    """Raise TooFewGpus as vLLM's device and parallel configuration do (vllm/config/device.py and parallel.py)."""
    if gpus == 0:
        raise TooFewGpus(
            "RuntimeError: Failed to infer device type, please set the environment variable "
            "`VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue."
        )
    if world_size > 1 and world_size > gpus:
        raise TooFewGpus(
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ParallelConfig\n"
            f"  Value error, World size ({world_size}) is larger than the number of available GPUs ({gpus}) in this "
            "node. If this is intentional and you are using:\n"
            "- ray, set '--distributed-executor-backend ray'.\n"
            "- multiprocessing, set '--nnodes' appropriately."
        )
