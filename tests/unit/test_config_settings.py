"""Settings: what is accepted, what is refused, and with which message."""

import pytest

from rigup.config.endpoint import Endpoint, gpu_indices
from rigup.config.settings import Connection, Settings
from rigup.config.settings_help import settings_table
from rigup.errors import InputError


def refused(data: dict[str, object]) -> str:
    with pytest.raises(InputError) as caught:
        Settings.from_data(data, host="rig1")
    return str(caught.value)


def test_no_data_gives_the_documented_defaults() -> None:
    settings = Settings.from_data({})
    assert settings.recipe == "vllm-nvfp4-cu130"
    assert settings.driver_branch == 595
    assert settings.cuda_toolkit == "13-2"
    assert settings.endpoints == {"main": Endpoint()}
    assert settings.endpoints["main"].port == 8000
    assert settings.container_ulimits == {"memlock": -1, "stack": 67108864}
    assert settings.ready_timeout == 2700


def test_keys_of_pyinfra_and_of_the_connector_are_ignored() -> None:
    data = {
        "ssh_hostname": "10.0.0.1",
        "ssh_port": 22,
        "_sudo": True,
        "rigup_lock": "/x/lab.lock",
        "driver_branch": 610,
    }
    assert Settings.from_data(data).driver_branch == 610


def test_dumped_settings_can_be_read_again() -> None:
    settings = Settings.from_data({"endpoints": {"main": {"gpus": [0, 1, 2, 3]}}, "sysctl": {"vm.swappiness": "10"}})
    assert Settings.from_data(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("off", ["off", False, None])
def test_the_cuda_toolkit_can_be_turned_off_in_yaml_and_in_data(off: object) -> None:
    assert Settings.from_data({"cuda_toolkit": off}).cuda_toolkit is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (450, {"all": 450}),
        ([450, 300], {"0": 450, "1": 300}),
        ({f"GPU-{'0' * 8}-0000-0000-0000-{'0' * 12}": 300}, {f"GPU-{'0' * 8}-0000-0000-0000-{'0' * 12}": 300}),
        (None, {}),
    ],
)
def test_a_power_limit_is_for_all_gpus_or_for_some(written: object, meant: dict[str, int]) -> None:
    assert Settings.from_data({"gpu_power": written}).gpu_power == meant


@pytest.mark.parametrize("wrong", [True, "450", 45, 4500, 450.5, ["450"], {"first": 450}, {0: "450"}, {-1: 450}])
def test_what_is_no_power_limit_is_refused_with_an_example(wrong: object) -> None:
    assert "gpu_power: " in refused({"gpu_power": wrong}) and "450" in refused({"gpu_power": wrong})


def test_the_cuda_toolkit_may_be_written_with_a_dot() -> None:
    assert Settings.from_data({"cuda_toolkit": "13.3"}).cuda_toolkit == "13-3"


def test_an_unknown_key_suggests_a_similar_one_and_names_the_host() -> None:
    assert refused({"drvier_branch": 595}) == (
        "rig1: --data or group_data: drvier_branch: unknown key: did you mean driver_branch?"
    )


@pytest.mark.parametrize(("old", "new"), Settings.RENAMED.items())
def test_a_renamed_key_is_refused_with_its_new_name(old: str, new: str) -> None:
    *parents, key = old.replace("*", "main").split(".")
    data: dict[str, object] = {key: 1}
    for parent in reversed(parents):
        data = {parent: data}
    where = ".".join((*parents, key))
    assert refused(data) == f"rig1: --data or group_data: {where}: was renamed: use {new}"


def test_a_replacement_of_a_renamed_key_is_a_setting() -> None:
    for old, new in Settings.RENAMED.items():
        model = Endpoint if old.startswith("endpoints.") else Settings
        assert new in model.model_fields
        assert old.rpartition(".")[2] not in model.model_fields


def test_a_key_of_the_connection_says_how_to_set_it_for_one_run() -> None:
    assert "--data ssh_user=..." in refused({"user": "root"})


def test_all_wrong_keys_are_reported_at_once() -> None:
    message = refused({"driver_branch": "595", "reboot": "maybe", "model_store": "models", "recpie": "x"})
    assert len(message.splitlines()) == 4


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"driver_branch": 570}, "580 is the oldest"),
        ({"driver_branch": True}, "must be a whole number, got true"),
        ({"driver_branch": "595"}, "remove the quotes"),
        ({"driver_version": 595.71}, "put it in quotes"),
        ({"driver_version": "595"}, "is not a version"),
        ({"driver_version": "610.57.04"}, "is not in driver_branch 595"),
        ({"container_toolkit_version": "1.19.1"}, "use 1.20.1 or newer"),
        ({"cuda_toolkit": 13.2}, "write 13-2"),
        ({"cuda_toolkit": "cuda-13"}, "write 13-2"),
        ({"reboot": "when-neded"}, "did you mean when-needed?"),
        ({"docker_log_driver": "syslog"}, "docker_log_driver"),
        ({"model_store": "srv/models"}, "not an absolute path"),
        ({"model_store": "/srv/../etc"}, "not an absolute path"),
        ({"model_source": "/tmp/checkpoint"}, "a private /tmp"),
        ({"model_store": "/srv/a,readonly"}, "breaks mounts"),
        ({"hub_endpoint": "huggingface.co"}, "not an http or https URL"),
        ({"hub_endpoint": "https://me:secret@hub.example"}, "contains a user name or password"),
        ({"kernel_args": ["iommu=pt quiet"]}, "not a single kernel argument"),
        ({"kernel_args": "iommu=pt"}, "kernel_args"),
        ({"sysctl": {"swappiness": 1}}, "is not a sysctl"),
        ({"sysctl": {"vm.swappiness": "1\n2"}}, "not a sysctl value"),
        ({"modprobe_options": {"nvidia uvm": {"x": 1}}}, "not a module or option name"),
        ({"modprobe_options": {"nvidia": {"x": "a b"}}}, "breaks modprobe.d"),
        ({"container_ulimits": {"memlock": -2}}, "container_ulimits.memlock"),
        ({"ready_timeout": 1}, "ready_timeout"),
        ({"endpoints": {}}, "endpoints is empty"),
        ({"endpoints": {"Main": {}}}, "is not a valid name"),
        ({"endpoints": {"main": {"port": 0}}}, "endpoints.main.port"),
        ({"endpoints": {"main": {"port": 70000}}}, "endpoints.main.port"),
        ({"endpoints": {"main": {"gpu": "all"}}}, "did you mean gpus?"),
        ({"endpoints": {"main": {"gpus": []}}}, "a list of GPU numbers"),
        ({"endpoints": {"main": {"gpus": [0, 0]}}}, "lists a GPU twice"),
        ({"endpoints": {"main": {"gpus": [0, -1]}}}, "is not a GPU number"),
        ({"endpoints": {"main": {"gpus": 4}}}, "a list of GPU numbers"),
        ({"endpoints": {"main": {"listen": "localhost"}}}, "is not an IP address"),
        ({"endpoints": {"a": {"gpus": [0]}, "b": {"gpus": [1]}}}, "both listen on port 8000"),
        ({"endpoints": {"a": {"gpus": [0, 1]}, "b": {"gpus": [1], "port": 8001}}}, "both use GPU 1"),
        ({"endpoints": {"a": {}, "b": {"gpus": [1], "port": 8001}}}, "uses all GPUs"),
    ],
)
def test_invalid_settings_are_refused(data: dict[str, object], words: str) -> None:
    assert words in refused(data)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ({"listen": "192.168.1.5"}, "allowed_networks is not set"),
        ({"listen": "0.0.0.0", "allowed_networks": ["10.0.0.0/8"]}, "must be a specific address, not a wildcard"),
        ({"listen": "::", "allowed_networks": ["fd00::/8"]}, "must be a specific address, not a wildcard"),
        ({"allowed_networks": ["10.0.0.0/8"]}, "allowed_networks has no effect on 127.0.0.1"),
        ({"listen": "192.168.1.5", "allowed_networks": ["fd00::/8"]}, "fd00::/8 cannot reach 192.168.1.5"),
        ({"listen": "192.168.1.5", "allowed_networks": ["192.168.1.0/240"]}, "is not a network"),
        ({"listen": "192.168.1.5", "allowed_networks": ["192.168.1.5/24"]}, "is not a network"),
    ],
)
def test_an_address_that_others_can_reach_requires_networks(endpoint: dict[str, object], message: str) -> None:
    assert message in refused({"endpoints": {"main": endpoint}})


def test_an_address_that_others_can_reach_is_accepted_with_its_networks() -> None:
    endpoint = {"listen": "192.168.1.5", "allowed_networks": ["192.168.1.0/24", "10.1.2.3"]}
    found = Settings.from_data({"endpoints": {"main": endpoint}}).endpoints["main"]
    assert found.is_public
    assert found.allowed_networks == ("192.168.1.0/24", "10.1.2.3/32")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
def test_loopback_is_accepted(address: str) -> None:
    assert Settings.from_data({"endpoints": {"main": {"listen": address}}}).endpoints["main"].listen == address


def test_a_trailing_slash_of_a_mirror_is_removed() -> None:
    assert Settings.from_data({"cuda_mirror": "http://mirror/cuda/"}).cuda_mirror == "http://mirror/cuda"


def test_gpus_are_resolved_to_the_numbers_of_the_host() -> None:
    assert gpu_indices("all", 4, {}) == (0, 1, 2, 3)
    assert gpu_indices((1, 3), 4, {}) == (1, 3)
    assert gpu_indices((1, "GPU-3"), 4, {"GPU-3": 3}) == (1, 3)
    assert gpu_indices((1, "GPU-3"), 4, {}) == (1,)


def test_every_setting_has_a_description() -> None:
    for model in (Connection, Settings, Endpoint):
        for name, info in model.model_fields.items():
            assert info.description, name
            assert info.description.endswith("."), name


def test_the_table_has_a_row_of_three_cells_for_every_setting() -> None:
    rows = settings_table().splitlines()
    for name in (*Connection.model_fields, *Settings.model_fields):
        assert any(row.startswith(f"| `{name}` |") for row in rows), name
    assert all(row.replace("\\|", "").count("|") == 4 for row in rows)
    assert "| `address` | (required) |" in settings_table()
    assert "`{nvidia_uvm: {uvm_disable_hmm: 1}}`" in settings_table()
