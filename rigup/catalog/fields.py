"""Field types that recipes and checkpoints use. A value of the wrong form is refused with an example of a right one."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Strict

from rigup.config.types import Matching
from rigup.config.yaml_file import complaint


def _argument(value: str) -> str:
    if "\0" in value:
        raise complaint("contains a NUL character, which no argument can", "remove it")
    return _text(value)


def _text(value: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise complaint("contains half of a character, which no file can", "remove it")
    return value


def _day(value: Any) -> Any:
    # YAML reads 2026-02-26 as a date, and 2026-02 as text.
    return value.isoformat() if isinstance(value, date) else value


Int = Annotated[int, Strict()]
Tag = Annotated[
    str,
    Matching(
        r"[a-z0-9][a-z0-9._/:-]*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}",
        "is not an image with a tag",
        "for example vllm/vllm-openai:cu130-nightly",
    ),
]
Revision = Annotated[
    str, Matching(r"[0-9a-f]{40}", "is not a commit", "use 40 hexadecimal digits, as the hub shows in `History`")
]
Digest = Annotated[str, Matching(r"sha256:[0-9a-f]{64}", "is not a digest", "use sha256: and 64 hexadecimal digits")]
Repo = Annotated[
    str,
    Matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*", "is not a hub repository", "use ORGANIZATION/NAME"
    ),
]
Branch = Annotated[str, Matching(r"[A-Za-z0-9][A-Za-z0-9._/-]*", "is not a branch", "for example main")]
Version = Annotated[
    str, Matching(r"\d+(\.\d+){1,3}(\.?(post|rc|dev)\d+)?", "is not a version", 'for example "0.17.0", in quotes')
]
Pinned = Annotated[
    str,
    Matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[a-z0-9,_-]+\])?==[0-9][A-Za-z0-9.+!]*",
        "is not a pinned package",
        "use NAME==VERSION",
    ),
]
PythonVersion = Annotated[str, Matching(r"3\.\d+", "is not a Python version", 'for example "3.12", in quotes')]
Inside = Annotated[str, Matching(r"(/[A-Za-z0-9._-]+)+", "is not an absolute path", "for example /cache/jit")]
Day = Annotated[
    str, BeforeValidator(_day), Matching(r"20\d\d(-\d\d){0,2}", "is not a day", "use 2026-02-26 or 2026-02")
]
Argument = Annotated[str, AfterValidator(_argument)]
Word = Annotated[str, Matching(r"[A-Za-z0-9][A-Za-z0-9._-]*", "is not a plain word", "use letters, digits and . _ -")]
Text = Annotated[str, AfterValidator(_text)]
EnvName = Annotated[
    str,
    Matching("[A-Za-z_][A-Za-z0-9_]*", "is not a variable's name", "use letters, digits and _, for example NCCL_DEBUG"),
]
Commit = Annotated[str, Matching("[0-9a-f]{7,40}", "is not a commit", "use 7 to 40 hexadecimal digits")]
HttpPath = Annotated[str, Matching("/[A-Za-z0-9_/-]*", "is not a path", "for example /health")]
Numbers = Annotated[str, Matching(r"[0-9]+\.[0-9]+", "is not two numbers with a dot", 'for example "12.0", in quotes')]
SourceUrl = Annotated[
    str,
    Matching(
        "https://[A-Za-z0-9./_-]+",
        "is not the https address of a repository",
        "for example https://github.com/vllm-project/vllm",
    ),
]


def unpinned(package: str) -> tuple[str, list[str], str]:
    """Return name, extras and version of a Pinned: `vllm`, `b12x` and `0.33.0` for `vllm[b12x]==0.33.0`."""
    named, _, version = package.partition("==")
    name, *extras = re.split(r"[\[,]", named.removesuffix("]"))
    return name, extras, version


class Data(BaseModel):
    """The base of all catalog models: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
