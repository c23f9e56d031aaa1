"""What is tried with a real engine on a GPU host, and what must come of it. Standard library only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

HEALTHY = "healthy"
ROUTER, DRAFTER = "WITHOUT_PR_35156", "WITHOUT_PR_38832"

# In the packed engine these variables take back two fixes of vLLM: before them, the router and the drafter's first
# layer were read as packed FP4. By file: the text of vLLM 0.20 to 0.25, and what replaces it.
REVERTS = {
    "vllm/model_executor/models/qwen3_next.py": (
        '            quant_config=None,\n            prefix=f"{prefix}.gate",',
        f'            quant_config=quant_config if __import__("os").environ.get("{ROUTER}") else None,\n'
        '            prefix=f"{prefix}.gate",',
    ),
    "vllm/model_executor/models/qwen3_5_mtp.py": (
        'if (quant_config and quant_config.get_name() == "modelopt_fp4")',
        'if (quant_config and quant_config.get_name() == "modelopt_fp4"\n'
        f'                and not __import__("os").environ.get("{DRAFTER}"))',
    ),
}

# Without profiling runs and compilation; several such servers fit on one card.
QUICK = ("--enforce-eager", "--kv-cache-memory-bytes=4G", "--max-model-len=32768")
# FlashInfer is not packed: its kernels are built for each card, or weigh gigabytes.
WITHOUT_FLASHINFER = ("--gdn-prefill-backend=triton",)
ENVIRONMENT = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Case:
    """One start of the engine.

    `unfixed` are fixes to take back; `patched` are the module patterns that the recipe's patches add, of those that it
    has; `fails` is the cause that `rigup diagnose` must name for a start that must fail, empty for one that must serve.
    With `smoke` it also gets the requests that a deploy sends.
    """

    name: str
    means: str
    unfixed: Sequence[str] = ()
    patched: Sequence[str] = ()
    speculation: bool = False
    cards: int = 1
    smoke: bool = False
    fails: str = ""


GATE, FIRST_LAYER = "model.language_model.layers.*.mlp.gate", "mtp.fc*"
CASES = (
    Case(
        "router-unpatched",
        "as published, on an engine without pull request 35156",
        unfixed=(ROUTER,),
        fails="weights-do-not-fit",
    ),
    Case(
        "drafter-unpatched",
        "the router patched, on an engine without both pull requests, with speculation",
        unfixed=(ROUTER, DRAFTER),
        patched=(GATE,),
        speculation=True,
        fails="drafter-read-as-fp4",
    ),
    Case("router-patched", "the router patched, on an engine without both pull requests", (ROUTER, DRAFTER), (GATE,)),
    Case(
        "both-patched",
        "both patched, on an engine without both pull requests, with speculation",
        unfixed=(ROUTER, DRAFTER),
        patched=(GATE, FIRST_LAYER),
        speculation=True,
        smoke=True,
    ),
    Case("as-released", "as published, on the engine as released, with speculation", speculation=True),
    Case(
        "two-cards",
        "both patched, on an engine without both pull requests, with speculation, on two cards",
        unfixed=(ROUTER, DRAFTER),
        patched=(GATE, FIRST_LAYER),
        speculation=True,
        cards=2,
        smoke=True,
    ),
)


def wrong(case: Case, came_of_it: str, causes: Collection[str]) -> str:
    """Return what is wrong with what came of a case, empty if nothing is.

    `came_of_it` is HEALTHY or how it ended, `causes` are those that its log was diagnosed with.
    """
    if not case.fails:
        return "" if came_of_it == HEALTHY else f"it must serve, and {came_of_it}: {_listed(causes)}"
    if came_of_it == HEALTHY:
        return "it must fail, and it serves: the engine or the checkpoint needs no patch any more"
    return "" if case.fails in causes else f"{came_of_it}, with another cause than {case.fails}: {_listed(causes)}"


def _listed(causes: Collection[str]) -> str:
    return ", ".join(causes) or "no cause is known"
