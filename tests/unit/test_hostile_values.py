"""No setting and no field of a recipe can write more than its value into a file or a command.

Every place that takes text is found by walking an example with all fields, which a new field must join. Hostile text is
put into each: it is refused, or the field is one of the few whose readers carry any text, or is only shown.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from rigup.catalog.recipe import Recipe
from rigup.config.endpoint import Endpoint
from rigup.config.inventory import load_inventory
from rigup.config.settings import Connection, Settings
from rigup.config.waiver import Waiver
from rigup.errors import InputError, RigupError
from rigup.render.peers import daemon_config
from rigup.templates import Lines, filled
from tests.unit.sample import CATALOGUE

# What ends a line, an argument, a quotation or a list somewhere; what shells, units, templates and formats expand.
HOSTILE = (
    *("\n", "\r", "\0", "\x1b[2J", "\x85", "\u2028", "\u202e", "\x7f", "\t", "\ud800"),
    *(" evil", "\nevil = 1", '"', "'", "`id`", "$(id)", "${HOME}", "%n", "\\", ";id", "|id", "&id", "#x", "\uff11"),
)
SETTINGS: dict[str, Any] = {
    "recipe": "vllm-nvfp4-cu130",
    "endpoints": {
        "main": {
            "recipe": "vllm-nvfp4-cu130",
            "gpus": ["GPU-12345678-1234-1234-1234-123456789012"],
            "listen": "192.0.2.1",
            "port": 8000,
            "allowed_networks": ["192.0.2.0/24"],
        },
        "six": {"gpus": [1], "listen": "2001:db8::1", "port": 8001, "allowed_networks": ["2001:db8::/32"]},
    },
    "driver_branch": 595,
    "driver_version": "595.71.05",
    "cuda_toolkit": "13-2",
    "gpu_power": {"all": 450},
    "acs": False,
    "persistence": True,
    "kernel_args": ["iommu=pt"],
    "modprobe_options": {"nvidia_uvm": {"uvm_disable_hmm": "1"}},
    "sysctl": {"vm.swappiness": "1"},
    "docker_version": "29.6.1",
    "docker_log_driver": "local",
    "container_toolkit_version": "1.20.1",
    "container_ulimits": {"memlock": -1},
    "model_store": "/srv/models",
    "model_disk": "models",
    "model_source": "/srv/source",
    "peers": True,
    "peer_port": 8730,
    "peer_address": "rig1.lan",
    "cuda_mirror": "http://mirror.lan/cuda",
    "docker_mirror": "http://mirror.lan/docker",
    "toolkit_mirror": "http://mirror.lan/toolkit",
    "apt_keys": ["0123456789ABCDEF0123456789ABCDEF01234567"],
    "pypi_index": "http://mirror.lan/pypi",
    "python_mirror": "http://mirror.lan/python",
    "hub_endpoint": "https://hub.lan",
    "hub_mirror": "http://mirror.lan/hub",
    "registry_mirror": "http://mirror.lan:5000",
    "reboot": "never",
    "reboot_timeout": 1200,
    "ready_timeout": 2700,
    "max_unavailable": 1,
    "drain_timeout": 300,
    "stall_timeout": 900,
    "lock": "refuse",
    "retry": False,
    "fetch_timeout": 86400,
    "daily_audit": False,
    "replace_docker": False,
    "waivers": {"base-sysctl": {"reason": "a reason of some length", "until": "2027-01-31"}},
}
CONNECTION: dict[str, Any] = {
    "address": "192.0.2.11",
    "port": 22,
    "user": "ops",
    "key": "/keys/lab",
    "known_hosts": "/keys/known",
    "sudo": True,
}
# The catalog knows all recipes, and any other name is an error; files on the control machine and reasons for waivers
# are never part of a file or a command, so they may have any visible characters.
WORDS = {
    "kernel_args": r"[A-Za-z0-9_.,:/=@+-]+",
    "modprobe_options.nvidia_uvm.": r"[A-Za-z0-9_.,:;/=@+-]+",
    "sysctl.": r"[!-~]+( [!-~]+)*",
}
NAMED_OR_SHOWN = {"recipe", "endpoints.main.recipe", "key", "known_hosts", "waivers.base-sysctl.reason"}


def texts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], bool]]:
    """Yield the path of each text in a document; True for a key of a mapping."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key), True
            yield from texts(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts(inner, (*path, number))
    elif isinstance(value, str):
        yield path, False


def replaced(document: Any, path: tuple[Any, ...], is_key: bool, text: str) -> Any:
    """Return a copy in which the text at `path` is another one."""
    copied = copy.deepcopy(document)
    *parents, last = path
    there = copied
    for part in parents:
        there = there[part]
    if is_key:
        there[text] = there.pop(last)
    else:
        there[last] = text
    return copied


def variants(path: tuple[Any, ...], document: Any, is_key: bool) -> Iterator[str]:
    """Yield hostile forms of the text at `path`."""
    text: Any = document
    for part in path:
        text = part if is_key and part is path[-1] else text[part]
    for evil in HOSTILE:
        yield from (f"{text}{evil}", f"{evil}{text}", evil, f"{text[:1]}{evil}{text[1:]}")
    # What follows % in an IPv6 address may be anything, to Python.
    yield from (f"fe80::1%{evil}" for evil in HOSTILE)
    yield from ("-oProxyCommand=id", "--index-url==1")


def dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path if not isinstance(part, int))


def with_all_fields(model: type[BaseModel], example: dict[str, Any]) -> None:
    names = {info.alias or name for name, info in model.model_fields.items()}
    assert names == example.keys(), names ^ example.keys()


def test_the_examples_have_every_setting() -> None:
    with_all_fields(Settings, SETTINGS)
    with_all_fields(Endpoint, SETTINGS["endpoints"]["main"])
    with_all_fields(Waiver, SETTINGS["waivers"]["base-sysctl"])
    with_all_fields(Connection, CONNECTION)
    Settings.from_data(SETTINGS)
    Connection.model_validate(CONNECTION)


@pytest.mark.parametrize(
    ("model", "example"), [(Settings, SETTINGS), (Connection, CONNECTION)], ids=["settings", "connection"]
)
def test_a_hostile_value_of_any_setting_is_refused(model: type[BaseModel], example: dict[str, Any]) -> None:
    for path, is_key in texts(example):
        name = dotted(path)
        for text in variants(path, example, is_key):
            try:
                model.model_validate(replaced(example, path, is_key, text))
            except ValidationError:
                continue
            visible = text.isprintable() and not is_key
            # A lone key may be another valid key.
            harmless = text.isascii() and text.replace("-", "").replace(".", "").isalnum()
            # Words in a file that no shell reads, or that are quoted for it: up to the end of the line for sysctl.
            harmless |= any(name.startswith(key) and re.fullmatch(form, text) for key, form in WORDS.items())
            assert (name in NAMED_OR_SHOWN and (visible or "recipe" in name)) or harmless, (name, text)


def test_a_hostile_name_of_a_host_and_a_hostile_recipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    for evil in HOSTILE:
        if "\ud800" <= evil <= "\udfff":
            continue
        path.write_text(yaml.safe_dump({"hosts": {f"rig1{evil}": {"address": "192.0.2.1"}}}))
        with pytest.raises(InputError):
            load_inventory(path)
        with pytest.raises(RigupError):
            CATALOGUE.recipe(f"vllm-nvfp4-cu130{evil}")


# Recipes: arguments and environment arrive unchanged in every form, and these are only shown
# (test_render_export_property shows that they do not reach a terminal as they are).
CARRIED = ("argv", "image.command", "env.")
SHOWN = ("title", "caveats", "findings.", "not_deployable", "evidence.", "patches.")


def recipes() -> list[Recipe]:
    """The recipes of the catalog that together have every field with text."""
    return [recipe for recipe in CATALOGUE.recipes.values()]


def test_a_hostile_value_of_any_field_of_a_recipe_is_refused_carried_or_only_shown() -> None:
    seen: set[str] = set()
    for recipe in recipes():
        example = recipe.model_dump(mode="json", exclude_none=True)
        for path, is_key in texts(example):
            name = dotted(path)
            if name in seen or (is_key and name.partition(".")[0] != "env"):
                continue
            seen.add(name)
            for text in variants(path, example, is_key):
                try:
                    Recipe.model_validate(replaced(example, path, is_key, text))
                except ValidationError:
                    continue
                if name.startswith(SHOWN):
                    continue
                if name.startswith(CARRIED) and not is_key:
                    assert "\0" not in text and "\ud800" not in text, (name, text)
                else:
                    assert text.isascii() and text.isprintable() and not {*text} & {*" \"'`$%\\;|&#"}, (name, text)
    # Every field that holds text was seen in some recipe.
    fields = {name for name, info in Recipe.model_fields.items() if "str" in str(info.annotation)}
    assert fields - {name.partition(".")[0] for name in seen} <= {"superseded_by", "not_deployable", "extends"}


# Renderers refuse what they cannot carry, should it ever get that far


@pytest.mark.parametrize("evil", ["x\nhosts allow = *", "x y", "x\0", "x\u2028y", ""])
def test_the_configuration_for_peers_refuses_what_is_not_a_path_or_an_address(evil: str) -> None:
    with pytest.raises(RigupError, match="cannot be written to rsync's configuration"):
        daemon_config("/srv/models", 8730, ["192.0.2.1", evil], [])
    with pytest.raises(RigupError, match="cannot be written to rsync's configuration"):
        daemon_config(evil, 8730, ["192.0.2.1"], [])


@pytest.mark.parametrize("evil", ["x\nExecStartPre=/bin/evil", "x\r", "x\0", "x\u2028y", "x\x1b[2J"])
def test_a_template_refuses_a_value_that_ends_its_line(evil: str) -> None:
    with pytest.raises(RigupError, match="contains a line break or a control character"):
        filled("store.mount.j2", store="/srv/models", label=evil)
    assert "a\nb" in filled("store.mount.j2", store="/srv/models", label=Lines("a\nb"))
