"""The program that brings a release of an engine into the catalog: what it reads from a wheel, and what it reports."""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from rigup.catalog.engine_options import missing_kernels, on_file
from tools.engines.capability import attention_backends
from tools.engines.compare import before, differences, read
from tools.engines.quantization import methods
from tools.engines.source import Wheel, classes

QUANTIZATION = "vllm/model_executor/layers/quantization/"


def wheel(directory: Path, files: Mapping[str, str]) -> Wheel:
    path = directory / "vllm-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return Wheel(path)


def test_a_method_has_the_capability_of_its_class_or_of_the_nearest_base(tmp_path: Path) -> None:
    table = """
from typing import Literal
QuantizationMethods = Literal["fp8", "own", "computed", "per_tensor", "mxfp4"]
def get(name, shorthands):
    method_to_config: dict[str, type] = {"fp8": Fp8, "own": Own, "computed": Computed}
    for each in shorthands:
        method_to_config.setdefault(each, Own)
if is_cpu() or is_cuda():
    BASE_QUANTIZATION_METHODS.update({"mxfp4": Own})
if is_npu():
    BASE_QUANTIZATION_METHODS.update({"mxfp4": Computed})
"""
    source = """
class Base: pass
class Fp8(Base):
    @classmethod
    def get_min_capability(cls) -> int:
        return 75
class Middle(Fp8): pass
class Own(Middle): pass
class Computed(Base):
    @classmethod
    def get_min_capability(cls) -> int:
        return 80 if hip else 89
"""
    found = methods(wheel(tmp_path, {f"{QUANTIZATION}__init__.py": table, f"{QUANTIZATION}a.py": source}), QUANTIZATION)
    assert found == {"computed": None, "fp8": 75, "mxfp4": 75, "own": 75, "per_tensor": 75}


@pytest.mark.parametrize(
    ("condition", "runs"),
    [
        ("capability.major == 12", ["12.0", "12.1"]),
        ("capability.major in [9, 10]", ["9.0", "10.0", "10.3"]),
        ("capability >= DeviceCapability(8, 9) and capability <= DeviceCapability(10, 0)", ["8.9", "9.0", "10.0"]),
        ("(capability.major, capability.minor) in ((12, 0), (12, 1))", ["12.0", "12.1"]),
        ("on_mi3xx()", None),
        ("capability.major == 9 and super().supports_compute_capability(capability)", None),
    ],
)
def test_an_attention_backend_runs_where_its_condition_says(
    tmp_path: Path, condition: str, runs: list[str] | None
) -> None:
    source = f"""
class Base:
    @classmethod
    def supports_compute_capability(cls, capability):
        # The reason.
        return {condition}
class Backend(Base): pass
"""
    files = {"vllm/own.py": source, "vllm/silent.py": "class Silent: pass\n"}
    registry = 'class E:\n    OWN = "vllm.own.Backend"\n    SILENT = "vllm.silent.Silent"\n    GONE = "vllm.gone.X"\n'
    enum = classes(iter([ast.parse(registry)]))["E"]
    assert attention_backends(wheel(tmp_path, files), enum) == ({"OWN": runs} if runs else {})


def test_the_differences_name_what_came_went_and_changed() -> None:
    def data(**changes: Any) -> dict[str, Any]:
        plain = {"options": {}, "architectures": [], "environment": [], "quantization": {}, "attention": {}}
        return plain | changes

    old = data(
        options={"--gone": "flag", "--size": "int", "--tool-call-parser": ["hermes", "old"]},
        quantization={"awq": 75, "gguf": 60},
        attention={"FLASHINFER": ["9.0"]},
    )
    new = data(
        options={"--size": "size", "--tool-call-parser": ["hermes", "new"], "--added": "text"},
        architectures=["NewForCausalLM"],
        quantization={"awq": 80},
        attention={"FLASHINFER": ["9.0", "12.0"]},
    )
    assert list(differences(old, new)) == [
        "options added (1): --added",
        "options removed (1): --gone",
        "--size: int -> size",
        "values of --tool-call-parser added (1): new",
        "values of --tool-call-parser removed (1): old",
        "architectures added (1): NewForCausalLM",
        "quantization removed (1): gguf",
        "quantization awq needs capability 80 instead of 75",
        "attention backends that run on 12.0 added (1): FLASHINFER",
    ]


def test_a_release_is_compared_with_the_newest_older_one() -> None:
    assert before("sglang", "0.5.23") == before("sglang", "0.5.20")
    assert (before("sglang", "0.5.20") or Path()).name == "sglang-0.5.9.yaml"
    assert before("vllm", "0.1.0") is None


def test_the_list_of_missing_kernels_agrees_with_the_engines_own_conditions() -> None:
    """`recipes/hardware/sm120.yaml` also lists backends of other platforms, whose conditions are not evaluated."""
    lacking = missing_kernels("vllm")["--attention-backend"]
    newest = read(next(path for engine, version, path in on_file() if (engine, version) == ("vllm", "0.33.0")))
    for name, capabilities in newest["attention"].items():
        assert any(fnmatchcase(name, pattern) for pattern in lacking) == ("12.0" not in capabilities), name
    assert newest["quantization"]["modelopt_fp4"] == 75
