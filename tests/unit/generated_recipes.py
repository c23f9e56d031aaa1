"""Whole recipes made up by hypothesis, with values that shells and readers of files trip on."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rigup.catalog.loader import Catalog
from rigup.catalog.recipe import NCCL_LEVELS, Recipe
from tests.unit.sample import CATALOGUE
from tests.unit.test_render_systemd import HOSTILE

CHECKPOINTS = CATALOGUE.checkpoints

# Numbers, dates and truth values to one YAML reader or the other; `$`, `%` and quotes to everything else.
WORDS = (
    *HOSTILE,
    *("1e3", "0o17", "0x1f", "1_000", "12:30:45", ".5", "+1", "2026-11-23", "1.", ".inf", "NaN", "~"),
    *(
        "yes",
        "off",
        "null",
        "=",
        "<<",
        "- a",
        "? b",
        "a: b",
        "&anchor",
        "*alias",
        "!!int 3",
        "|",
        ">",
        "%TAG",
        "@",
        "`",
    ),
    *("$(HOST)", "$$(HOST)", "$${HOST}", "${HOST:-x}", "%H", "%%", "trailing ", "tab\t", "[1, 2]", "{a: 1}"),
)
# Surrogates are no text: no file in UTF-8 holds them.
ANY = st.characters(exclude_categories=["Cs"])
VALUES = st.one_of(
    st.sampled_from(WORDS),
    st.text(st.sampled_from(" \t\n\r\"'\\$%{}()[];#=@:,&|<>*?!`~-ax0é模\x01\x7f\x85\u2028"), max_size=12),
    st.text(ANY, max_size=8),
)
# Without an alphabet it looks up first which of all characters are text.
matching = partial(st.from_regex, fullmatch=True, alphabet=st.characters(max_codepoint=127))
PLAIN = matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}")
HEX = st.text(st.sampled_from("0123456789abcdef"), min_size=64, max_size=64)
INSIDE = st.lists(matching(r"(/[A-Za-z0-9._-]{1,6}){1,3}"), max_size=2, unique=True)
VERSION = matching(r"[0-9]\.[0-9]{1,2}(\.[0-9])?")
SERVED_NAME = matching(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,12}")
ENV = st.dictionaries(matching(r"[A-Za-z_][A-Za-z0-9_]{0,8}"), VALUES, max_size=4)


def _optional(**of: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=of)


FORK = _optional(fork=PLAIN, min=VERSION)
IMAGES = st.fixed_dictionaries(
    {"tag": matching(r"[a-z0-9][a-z0-9._-]{0,8}/[a-z0-9]{1,8}:[A-Za-z0-9_][A-Za-z0-9._-]{0,8}")},
    optional={"digest": HEX.map("sha256:{}".format), "command": st.lists(VALUES, max_size=3)},
)
VENVS = st.fixed_dictionaries(
    {"python": VERSION, "packages": st.lists(PLAIN.map("{}==1.0".format), min_size=1, max_size=3)}
)
SOURCES = st.fixed_dictionaries(
    {"repo": PLAIN.map("https://example.org/{}".format)},
    optional={
        "branch": PLAIN,
        "commit": HEX.map(lambda text: text[:40]),
        "pull_requests": st.lists(st.integers(1, 99999), max_size=2),
    },
)
SPECULATION = {
    "vllm": st.fixed_dictionaries(
        {"method": PLAIN, "n": st.one_of(st.integers(1, 9), st.just([[1, 4, 3], [5, 9, 0]]))}
    ),
    "sglang": st.fixed_dictionaries(
        {"method": PLAIN, "n": st.integers(1, 9), "steps": st.integers(1, 9), "topk": st.integers(1, 9)}
    ),
}
PATCHES = (
    st.just({"target": "quantization-ignore", "add": ["lm_head"], "when": {"image_before": "2026-02-24"}}),
    st.just({"target": "yarn", "factor": 2.0, "tokens": 262144, "rope": {"mrope_section": [11, 11, 10]}}),
    st.fixed_dictionaries({"target": st.just("chat-template"), "text": VALUES.filter(bool)}),
    st.just({"target": "generation-defaults", "set": {"temperature": 0.5}}),
)


MORE = {
    engine: _optional(
        not_deployable=VALUES,
        min_driver_cuda=matching(r"1[0-9]\.[0-9]"),
        parallel=_optional(**{size: st.integers(1, 8) for size in ("tp", "pp", "dp", "dcp")}),
        speculation=speculation,
        tool_parser=PLAIN,
        reasoning_parser=PLAIN,
        container=_optional(caches=INSIDE, tmpfs=INSIDE, security_opt=st.just(["seccomp=unconfined"])),
        ready=_optional(path=st.sampled_from(["/health", "/v1/models"]), timeout=st.integers(10, 86400)),
    )
    for engine, speculation in SPECULATION.items()
}
PATCHED = st.lists(st.one_of(*PATCHES), max_size=3, unique_by=lambda patch: str(patch["target"]))


@st.composite
def recipes(draw: st.DrawFn, containers: bool = False) -> Recipe:
    """A recipe that the schema accepts; with `containers`, one that runs in a container."""
    engine = draw(st.sampled_from(["vllm", "sglang"]))
    installs = {"image": IMAGES} if containers else {"image": IMAGES, "venv": VENVS, "source": SOURCES}
    install = draw(st.sampled_from(sorted(installs)))
    names = draw(st.lists(PLAIN.map(str.lower), max_size=5, unique=True))
    argv = [f"--x-{name}={draw(VALUES)}" if draw(st.booleans()) else f"--x-{name}" for name in names]
    data = {
        "id": draw(PLAIN),
        "title": draw(VALUES),
        "workload": draw(st.lists(st.sampled_from(["agents", "chat", "code", "batch"]), min_size=1, unique=True)),
        "status": draw(st.sampled_from(["current", "verified", "reported", "assembled"])),
        "tool_calls": draw(st.sampled_from(["reliable", "usually", "broken", "unknown"])),
        "evidence": [{"source": draw(VALUES), "kind": "assembled", "says": draw(VALUES), "speeds": [{"tokens": 1}]}],
        "caveats": draw(st.lists(VALUES, max_size=2)),
        "engine": {"name": engine, **draw(FORK)},
        install: draw(installs[install]),
        "checkpoint": draw(st.sampled_from(sorted(CHECKPOINTS))),
        "served_name": draw(SERVED_NAME),
        "gpus": draw(st.integers(1, 64)),
        "vram_mib": draw(st.integers(1024, 200000)),
        "argv": argv,
        "patches": [{**patch, "why": "seen"} for patch in draw(PATCHED)],
        "env": draw(ENV),
        **draw(MORE[engine]),
    }
    if draw(st.booleans()):
        data["env"]["NCCL_P2P_LEVEL"] = draw(st.sampled_from(NCCL_LEVELS))
    try:
        return Recipe.model_validate(data)
    except ValidationError:
        reject()


PUBLISHED = {
    "config.json": json.dumps(
        {
            "quantization_config": {"ignore": []},
            "text_config": {"rope_parameters": {"mrope_section": [11, 11, 10]}, "max_position_embeddings": 262144},
        }
    ),
    "chat_template.jinja": "{{ messages }}",
    "generation_config.json": "{}",
}
"""What a checkpoint must have published for all of the patches to be made."""


def catalog_of(recipe: Recipe) -> Catalog:
    return Catalog({recipe.id: recipe}, CHECKPOINTS)


def generated(count: int) -> list[Recipe]:
    """Recipes with containers, the same ones each time: for tests that show them all to a real program at once."""
    found: list[Recipe] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(recipes(containers=True))
    def gather(recipe: Recipe) -> None:
        found.append(recipe)

    gather()
    return found
