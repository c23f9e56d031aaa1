"""The miniature's tokenizer: Qwen's byte-level BPE and special tokens, with 512 entries instead of 248,320."""

import itertools
import json
from collections import Counter
from pathlib import Path

from lab.checkpoint.tensors import VOCABULARY

TEXT = Path(__file__).parent / "text"

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Added tokens that a decoder treats as text: `skip_special_tokens` keeps them, as the parsers require."""

PLAIN = VOCABULARY - len(SPECIAL) - len(ADDED)
"""Entries that are bytes and merges."""

# The pattern that Qwen's tokenizers split text with before merging.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_alphabet() -> list[str]:
    """Return the character that byte-level BPE uses for each byte: itself if printable, else one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _learn(words: Counter[tuple[str, ...]], count: int) -> list[tuple[str, str]]:
    """Return the `count` merges that byte-pair encoding learns from the words; ties go to the pair that sorts first."""
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged: Counter[tuple[str, ...]] = Counter()
        for word, times in words.items():
            parts: list[str] = []
            for part in word:
                if parts and (parts[-1], part) == best:
                    parts[-1] += part
                else:
                    parts.append(part)
            merged[tuple(parts)] += times
        words = merged
    return merges


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the plain entries with their numbers, and the merges in order."""
    alphabet = byte_alphabet()
    space = alphabet[0x20]
    text = (TEXT / "corpus.txt").read_text()
    words = Counter(tuple(space + word) for word in text.split())
    merges = _learn(words, PLAIN - len(alphabet))
    entries = sorted(alphabet) + [left + right for left, right in merges]
    return {entry: number for number, entry in enumerate(entries)}, merges


def token_ids() -> dict[str, int]:
    """Return the numbers of the special and added tokens, which follow the plain ones."""
    return {token: PLAIN + number for number, token in enumerate((*SPECIAL, *ADDED))}


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, vocab.json, merges.txt and chat_template.jinja into `folder`."""
    entries, merges = vocabulary()
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": number, "content": token, **plain, "special": token in SPECIAL} for token, number in token_ids().items()
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": entries,
            "merges": [list(pair) for pair in merges],
        },
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    merges_text = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (folder / "vocab.json").write_text(json.dumps(entries, ensure_ascii=False) + "\n")
    (folder / "merges.txt").write_text(merges_text)
    (folder / "chat_template.jinja").write_text((TEXT / "chat_template.jinja").read_text())
