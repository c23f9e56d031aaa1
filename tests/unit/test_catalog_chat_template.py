"""Chat templates: what a prelude makes of messages, rendered as engines render them."""

import json
from typing import Any

import pytest

from lab.checkpoint import build
from rigup.catalog.apply_patches import patch_files
from rigup.catalog.chat_template import changed, of_tokenizer, render, takes_two_system_messages
from rigup.catalog.patch import TemplatePatch
from rigup.errors import RigupError
from tests.unit.sample import CATALOGUE

# In the shape of Qwen3.5's: one system message, at the beginning; thinking on unless told otherwise.
PUBLISHED = (build() / "chat_template.jinja").read_text()
USER = {"role": "user", "content": "Hello"}
TWO = [{"role": "system", "content": "Be brief."}, {"role": "system", "content": "Answer in French."}, USER]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
MERGED = changed(PUBLISHED, merge=True)


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def test_the_published_template_refuses_what_opencode_sends() -> None:
    with pytest.raises(RigupError, match="System message must be at the beginning"):
        render(PUBLISHED, TWO)


def test_two_system_messages_become_one() -> None:
    one = [{"role": "system", "content": "Be brief.\n\nAnswer in French."}, USER]
    assert render(MERGED, TWO) == render(PUBLISHED, one)


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "system", "content": "Be brief."}, USER],
        [{"role": "system", "content": parts("Be", " brief.")}, USER],
        [USER, {"role": "assistant", "content": "Hi."}, USER],
    ],
)
def test_what_the_published_template_takes_is_prompted_exactly_as_before(messages: Any, tools: Any) -> None:
    assert render(MERGED, messages, tools=tools) == render(PUBLISHED, messages, tools=tools)


def test_a_late_system_message_and_a_developers_go_to_the_front() -> None:
    messages = [TWO[0], USER, {"role": "developer", "content": "Use metres."}]
    prompt = render(MERGED, messages, tools=TOOLS)
    assert prompt.index("get_weather") < prompt.index("Be brief.\n\nUse metres.") < prompt.index("Hello")


def test_messages_in_parts_keep_their_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    messages = [
        {"role": "system", "content": parts("Be brief.")},
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": [image, *parts("Look.")]},
    ]
    prompt = render(MERGED, messages)
    assert "system\nBe brief.\n\nAnswer in French.<|im_end|>" in prompt
    assert "<|image_pad|>" in prompt


@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_is_what_the_patch_says_unless_the_request_says(thinking: bool) -> None:
    template = changed(PUBLISHED, merge=True, thinking=thinking)
    assert render(template, [USER]) == render(PUBLISHED, [USER], enable_thinking=thinking)
    assert render(template, [USER], enable_thinking=not thinking) == render(
        PUBLISHED, [USER], enable_thinking=not thinking
    )
    assert render(template, TWO, enable_thinking=True).endswith("<think>\n")


def test_a_template_that_takes_two_system_messages_is_left_alone() -> None:
    template = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    assert takes_two_system_messages(template) and not takes_two_system_messages(PUBLISHED)
    assert changed(template, merge=True) == template
    # One that takes them and loses the second.
    assert not takes_two_system_messages("{{ messages[0].content }}{{ messages[-1].content }}")


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    with pytest.raises(RigupError):
        render("{{ ''.__class__.__mro__[1].__subclasses__() }}", [USER])


def template_patch(**values: Any) -> TemplatePatch:
    return TemplatePatch.model_validate({"target": "chat-template", "why": "x", **values})


def test_a_patched_template_is_stable() -> None:
    patch = template_patch(system="merge", thinking=False)
    once = patch_files({"chat_template.jinja": PUBLISHED}, [patch], "sglang")
    assert list(once) == ["chat_template.jinja"]
    merge = template_patch(system="merge")
    assert patch_files({"chat_template.jinja": MERGED}, [merge], "vllm") == {}


def test_a_template_of_ones_own_takes_the_place_of_the_published_one() -> None:
    patch = template_patch(text="{{ messages[0].content }}", thinking=False)
    made = patch_files({}, [patch], "vllm")["chat_template.jinja"]
    assert render(made, [USER]) == "Hello"
    assert patch_files({"chat_template.jinja": made}, [template_patch(text=made)], "vllm") == {}


@pytest.mark.parametrize(
    "kept", [PUBLISHED, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": PUBLISHED}]]
)
def test_older_checkpoints_keep_their_template_with_the_tokenizer(kept: Any) -> None:
    config = {"chat_template": kept}
    assert of_tokenizer(config) == PUBLISHED
    made = patch_files({"tokenizer_config.json": json.dumps(config)}, [template_patch(system="merge")], "vllm")
    assert made == {"chat_template.jinja": MERGED}


def test_a_checkpoint_without_any_template_is_an_error() -> None:
    with pytest.raises(RigupError, match=r"neither chat_template\.jinja nor"):
        patch_files({"tokenizer_config.json": "{}"}, [template_patch(system="merge")], "vllm")


def test_every_current_recipe_for_agents_on_this_model_takes_two_system_messages() -> None:
    for recipe in CATALOGUE.recipes.values():
        if "agents" in recipe.workload and CATALOGUE.checkpoint(recipe.checkpoint).model.startswith("Qwen3.5"):
            assert any(isinstance(patch, TemplatePatch) for patch in recipe.patches), recipe.id
