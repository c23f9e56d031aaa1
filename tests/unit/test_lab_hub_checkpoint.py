"""The checkpoint in miniature: the structure of the published one, the same bytes every time."""

import json
import struct
from pathlib import Path
from typing import Any

import jinja2
import pytest

from lab.checkpoint import content_key, write_checkpoint
from lab.checkpoint.tokenizer import byte_alphabet, token_ids, vocabulary


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder)
    return folder


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def headers(model: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for shard in sorted(model.glob("*.safetensors")):
        with shard.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            header = json.loads(content.read(length))
        header.pop("__metadata__")
        end = max(entry["data_offsets"][1] for entry in header.values())
        assert shard.stat().st_size == 8 + length + end
        found |= {name: entry | {"shard": shard.name} for name, entry in header.items()}
    return found


def test_it_is_the_same_to_the_byte_each_time(model: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    names = sorted(path.name for path in model.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert all((model / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    assert len(content_key()) == 16


def test_it_has_the_published_files_and_a_fitting_size(model: Path) -> None:
    names = {path.name for path in model.iterdir()}
    assert names == {
        ".gitattributes",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "hf_quant_config.json",
        "merges.txt",
        *(f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)),
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
        "vocab.json",
    }
    assert 5e6 < sum(path.stat().st_size for path in model.iterdir()) < 30e6


def test_the_index_names_the_shard_of_every_tensor(model: Path) -> None:
    index = load(model / "model.safetensors.index.json")
    found = headers(model)
    assert index["weight_map"] == {name: entry["shard"] for name, entry in found.items()}
    sizes = (entry["data_offsets"][1] - entry["data_offsets"][0] for entry in found.values())
    assert index["metadata"]["total_size"] == sum(sizes)


def test_routed_experts_are_stored_as_nvfp4_and_everything_else_is_not(model: Path) -> None:
    for name, entry in headers(model).items():
        quantized = name.startswith("model.language_model.") and ".experts." in name and name.endswith(".weight")
        assert (entry["dtype"] == "U8") == quantized, name
    expert = "model.language_model.layers.0.mlp.experts.0.down_proj"
    shapes = {name: (entry["dtype"], entry["shape"]) for name, entry in headers(model).items()}
    assert shapes[f"{expert}.weight"] == ("U8", [256, 64])
    assert shapes[f"{expert}.weight_scale"] == ("F8_E4M3", [256, 8])
    assert shapes[f"{expert}.weight_scale_2"] == shapes[f"{expert}.input_scale"] == ("F32", [])


def test_the_quantization_config_has_the_published_shape_without_routers_and_mtp_fc(model: Path) -> None:
    config = load(model / "config.json")
    assert config["architectures"] == ["Qwen3_5MoeForConditionalGeneration"]
    quantization = config["quantization_config"]
    assert (quantization["quant_algo"], quantization["quant_method"]) == ("NVFP4", "modelopt")
    assert quantization["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    ignore = quantization["ignore"]
    assert ignore[0] == "lm_head"
    assert ignore[-2:] == ["model.visual*", "mtp.layers.0*"]
    assert not [pattern for pattern in ignore if pattern.endswith("mlp.gate") or pattern.startswith("mtp.fc")]
    layers = config["text_config"]["num_hidden_layers"]
    assert all(any(f".layers.{number}." in pattern for pattern in ignore) for number in range(layers))
    report = load(model / "hf_quant_config.json")["quantization"]
    assert report["exclude_modules"] == ignore
    assert {"group_size", "kv_cache_quant_algo", "quant_algo"} <= report.keys()


def test_the_vocabulary_is_full_and_its_merges_make_its_entries(model: Path) -> None:
    entries, merges = vocabulary()
    numbers = [*entries.values(), *token_ids().values()]
    assert sorted(numbers) == list(range(512)) == list(range(load(model / "config.json")["text_config"]["vocab_size"]))
    assert len(set(byte_alphabet())) == 256
    assert {left + right for left, right in merges} | set(byte_alphabet()) == set(entries)
    assert load(model / "vocab.json") == entries == load(model / "tokenizer.json")["model"]["vocab"]


def render(model: Path, messages: list[dict[str, Any]], **more: Any) -> str:
    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = json.dumps
    template = environment.from_string((model / "chat_template.jinja").read_text())
    return template.render(messages=messages, add_generation_prompt=True, **more)


USER = {"role": "user", "content": "Hello"}


def test_the_template_enables_thinking_by_default(model: Path) -> None:
    assert render(model, [USER]) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert render(model, [USER], enable_thinking=False).endswith("<think>\n\n</think>\n\n")


def test_a_second_system_message_is_refused_in_qwens_words(model: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    assert render(model, [system, USER]).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    with pytest.raises(ValueError, match=r"^System message must be at the beginning\.$"):
        render(model, [USER, system])


def test_tools_and_calls_take_qwens_xml_form(model: Path) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}}
    text = render(
        model,
        [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "cold"}],
        tools=[tool],
    )
    assert '"name": "get_weather"' in text
    expected = (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\ncold\n</tool_response><|im_end|>\n"
    )
    assert expected in text


def test_pictures_become_their_placeholder(model: Path) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "What is it?"}]
    assert "<|vision_start|><|image_pad|><|vision_end|>What is it?" in render(
        model, [{"role": "user", "content": parts}]
    )
