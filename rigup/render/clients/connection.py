"""What a client needs to know of an endpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rigup.catalog.memory import asked_context
from rigup.catalog.model import Model
from rigup.catalog.recipe import Recipe
from rigup.plan.build import THINKING
from rigup.plan.model import EndpointPlan

# vLLM refuses a request whose prompt and longest answer exceed the context together (issue 42474), so what is allowed
# for the answer is lost for the prompt.
MAX_OUTPUT, SHARE_OF_OUTPUT = 32768, 4

# The field of a message that holds the reasoning: vLLM's pull request 33402, SGLang's page on reasoning parsers.
REASONING = {"vllm": "reasoning", "sglang": "reasoning_content"}


@dataclass(frozen=True)
class Connection:
    """An endpoint as a client sees it. `context` and `output` are in tokens; None if neither recipe nor model says.

    Unless the recipe sets the context (`is_set`), it is the one that the model was trained with.
    `url` has no path. `forward` is what `ssh -L` needs if the endpoint listens on loopback only; then there is no key.
    `reasoning` is the field of its answers, and `thinking` the key of `chat_template_kwargs` that turns it off.
    `tool_calls` is how reliable they are, or None without them. `merges_system` says that a second system message is
    accepted.
    """

    host: str
    endpoint: str
    url: str
    forward: str | None
    model: str
    trained_as: str
    engine: str
    context: int | None
    is_set: bool
    tool_calls: str | None
    reasoning: str | None
    thinking: str
    images: bool
    merges_system: bool

    @property
    def name(self) -> str:
        """The endpoint as every command names it."""
        return f"{self.host}/{self.endpoint}"

    @property
    def needs_key(self) -> bool:
        """Whether requests need the endpoint's key."""
        return self.forward is None

    @property
    def output(self) -> int | None:
        """The longest answer to ask for."""
        return min(MAX_OUTPUT, self.context // SHARE_OF_OUTPUT) if self.context else None

    @property
    def variable(self) -> str:
        """The environment variable for the key; different for every endpoint."""
        return "RIGUP_KEY_" + re.sub(r"[^A-Z0-9]", "_", f"{self.host}_{self.endpoint}".upper())


def connection(host: str, endpoint: EndpointPlan, recipe: Recipe, model: Model | None) -> Connection:
    """Return what clients need to know of this endpoint, which serves `recipe`."""
    local = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    public = endpoint.public_url
    asked = asked_context(recipe)
    return Connection(
        host=host,
        endpoint=endpoint.name,
        # A tunnel ends at the same port of the client's own loopback.
        url=public or f"http://127.0.0.1:{endpoint.port}",
        forward=None if public else f"{endpoint.port}:{local}:{endpoint.port}",
        model=endpoint.served_name,
        trained_as=model.id if model else "",
        engine=endpoint.engine,
        context=asked or (model.context if model else None),
        is_set=asked is not None,
        tool_calls=recipe.tool_calls if recipe.tool_parser else None,
        reasoning=REASONING[endpoint.engine] if recipe.reasoning_parser else None,
        thinking=model.thinking if model and model.thinking else THINKING,
        images=endpoint.smoke.images,
        merges_system=any(patch.target == "chat-template" and patch.system == "merge" for patch in recipe.patches),
    )
