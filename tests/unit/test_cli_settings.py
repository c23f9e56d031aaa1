"""`rigup settings`: the table, one setting explained, and the schemas for editors."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from rigup.config.settings_help import GROUPS, NEED
from tests.unit.own_command import rigup
from tests.unit.sample import OWN

ROOT = Path(__file__).resolve().parents[2]


def said(*words: str, code: int = 0) -> str:
    done = rigup("settings", *words, cwd=ROOT)
    assert done.returncode == code
    return done.stdout if code == 0 else done.stderr.rstrip("\n")


def test_without_a_key_all_are_listed() -> None:
    assert said().splitlines()[1].split()[:2] == ["address", "(required)"]


def test_one_setting_is_explained() -> None:
    assert said("max_unavailable") == (
        "max_unavailable\n"
        "  Hosts that may stop serving at the same time in one run; the others serve until their turn.\n"
        "  type:    whole number from 1 to 1000\n"
        "  default: 1\n"
        "  where:   under `defaults`, under a host, or for one run with `--data max_unavailable=VALUE`\n"
        "  example: max_unavailable: 1\n"
    )
    assert said("kernel_args").splitlines()[-1] == "  steps:   kernel"


ENDPOINTS = "under an endpoint: `endpoints: {main: {allowed_networks: ...}}`"


@pytest.mark.parametrize("key", ["allowed_networks", "endpoints.main.allowed_networks", "endpoints.*.allowed_networks"])
def test_a_setting_of_an_endpoint_may_have_its_place_before_it(key: str) -> None:
    assert said(key).splitlines()[:5] == [
        "endpoints.NAME.allowed_networks",
        "  Networks that may connect beyond loopback, such as `[192.168.1.0/24]`; the firewall drops all other "
        "packets.",
        "  type:    list; each entry text",
        "  default: []",
        f"  where:   {ENDPOINTS}",
    ]


def test_a_name_in_several_places_is_explained_in_each() -> None:
    assert [line for line in said("port").splitlines() if not line.startswith(" ")] == [
        "port", "", "endpoints.NAME.port", "", "load_balancer.port",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "key", sorted({info.alias or name for group in (*GROUPS, NEED) for name, info in group.model.model_fields.items()})
)
def test_every_setting_has_a_type_a_place_and_an_example(key: str) -> None:
    for part in said(key).split("\n\n"):
        rows = dict(line.strip().split(": ", 1) for line in part.replace(":  ", ": ").splitlines()[2:])
        assert {"type", "default", "where", "example"} <= rows.keys(), part
        # The example is what it says: a line of YAML with this key.
        assert list(yaml.safe_load(rows["example"])) == [key], part


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("kernel_arg", "there is no setting 'kernel_arg': did you mean kernel_args?"),
        ("endpoints.main.lissten", "there is no setting 'endpoints.main.lissten': did you mean listen?"),
        ("zzz", "there is no setting 'zzz': `rigup settings` lists all"),
        ("neighbours", "neighbours was renamed: use peers"),
        ("networks", "networks was renamed: use allowed_networks"),
        ("endpoints.main.networks", "endpoints.main.networks was renamed: use allowed_networks"),
        ("ansible_host", "there is no setting 'ansible_host': did you mean address?"),
    ],
)
def test_an_unknown_or_old_setting_is_refused_with_the_one_that_is_meant(key: str, says: str) -> None:
    assert said(key, code=1) == says


def plain(value: Any) -> Any:
    """YAML as an editor reads it, for which a date is text."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.isoformat() if isinstance(value, date) else value


def accepts(schema: dict[str, Any], text: str) -> bool:
    return bool(Draft202012Validator(schema).is_valid(plain(yaml.safe_load(text))))


@pytest.fixture
def inventory() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(said("--schema"))
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    return schema


@pytest.fixture
def recipes() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(said("--schema", "recipes"))
    Draft202012Validator.check_schema(schema)
    return schema


def test_the_schema_of_the_inventory_accepts_what_is_right(inventory: dict[str, Any]) -> None:
    assert accepts(inventory, (ROOT / "inventory/lab.example.yaml").read_text())
    for right in (
        "defaults:\nhosts: {a: {address: b}}",
        "x-a: 1\ndefaults: {x-b: 2}\nhosts: {a: {address: b, x-c: 3}}",
        "hosts: {a: {address: b, cuda_toolkit: off, recipe: {for: agents}, sysctl: {vm.swappiness: 1}}}",
        "hosts: {a: {address: b, waivers: {disk-space: {reason: until spring, until: 2027-01-31}}}}",
    ):
        assert accepts(inventory, right), right


@pytest.mark.parametrize(
    "wrong",
    [
        "{}",
        "hosts: {}",
        "hosts: {a: {}}",
        "hosts: {a b: {address: b}}",
        "defaults: {address: b}\nhosts: {a: {address: b}}",
        "hosts: {a: {adress: b}}",
        "hosts: {a: {address: b, port: '22'}}",
        "hosts: {a: {address: b, port: 70000}}",
        "hosts: {a: {address: b, kernel_args: iommu=pt}}",
        "hosts: {a: {address: b, reboot: always}}",
        "hosts: {a: {address: b, sysctl: {swappiness: 1}}}",
        "hosts: {a: {address: b, recipe: {for: agent}}}",
        "hosts: {a: {address: b, endpoints: {Main: {}}}}",
        "hosts: {a: {address: b, endpoints: {main: {networks: []}}}}",
        "hosts: {a: {address: b, waivers: {disk-spce: {reason: until spring, until: 2027-01-31}}}}",
        "hosts: {a: {address: b, waivers: {disk-space: {reason: slow, until: 2027-01-31}}}}",
    ],
)
def test_the_schema_of_the_inventory_refuses_what_is_wrong(inventory: dict[str, Any], wrong: str) -> None:
    assert not accepts(inventory, wrong)


def test_the_schema_of_recipes_accepts_the_catalog(recipes: dict[str, Any]) -> None:
    paths = [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "recipes/archive").glob("*.yaml")]
    assert len(paths) > 40
    assert [path.name for path in paths if not accepts(recipes, path.read_text())] == []
    right = "argv: {remove: [--a], add: [--b=c]}\nenv: {A: null}\nspeculation: null\nparallel: {tp: 8}\n"
    assert accepts(recipes, OWN.format(base="x") + right)


@pytest.mark.parametrize(
    "wrong",
    [
        "argv: --a",
        "argv: {add: --b}",
        "gpus: '4'",
        "status: good",
        "parallel: {tensor: 8}",
        "image: {tag: none}",
        "patches: [{target: yarn}]",
        "workloads: [agents]",
        "extends: null",
    ],
)
def test_the_schema_of_recipes_refuses_what_is_wrong(recipes: dict[str, Any], wrong: str) -> None:
    assert not accepts(recipes, OWN.format(base="x").replace("status: assembled\n" * ("status" in wrong), "") + wrong)
