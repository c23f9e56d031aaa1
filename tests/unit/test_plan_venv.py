"""Recipes without a container: plan, lock, unit and environment file."""

import hashlib
import re
import subprocess
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from rigup.catalog.recipe_parts import Venv
from rigup.config.settings import Settings
from rigup.errors import RigupError
from rigup.lock.http import Unresolved
from rigup.lock.lockfile import Lock, VenvLock, read, write
from rigup.lock.pypi import index_arguments, requirements, venv_lock
from rigup.operations import venv
from rigup.paths import CHECK_ARGS, HOST_PROGRAM
from rigup.plan.build import make_plan
from rigup.plan.model import EndpointPlan, Mount
from rigup.render.docker import docker_argv
from rigup.render.systemd import env_file_text, served_argv, unit_text
from rigup.render.verify import check_args_argv
from tests.unit.deploys import Actor, Said
from tests.unit.loopback import Answer, Site, serving
from tests.unit.sample import CATALOGUE, PUBLISHED, REPO, REVISION, lock, plan
from tests.unit.systemd_words import exec_words
from tests.unit.test_plan_build import REFUSING
from tests.unit.test_render_systemd import HOSTILE, settings_of
from tests.unit.waiting import HANG_S

RECIPE = CATALOGUE.recipe("vllm-stock-b12x")
STORE = f"/srv/models/{REPO}/{REVISION}"
PINS = tuple(
    f"{name}=={version} --hash=sha256:{'ab' * 32}" for name, version in (("b12x", "1.5.1"), ("vllm", "0.33.0"))
)


def locked() -> Lock:
    assert RECIPE.venv
    return lock().merged(Lock(venvs={RECIPE.venv.key: VenvLock(requirements=PINS)}))


def endpoint(template: str | None = None, **settings: object) -> EndpointPlan:
    published = PUBLISHED
    if template:
        published = {name: {**files, "chat_template.jinja": template} for name, files in PUBLISHED.items()}
    wanted = Settings.from_data({"recipe": RECIPE.id, **settings})
    return make_plan("rig1", wanted, CATALOGUE, locked(), published).endpoint("main")


def test_the_engine_runs_from_the_locked_environment_on_the_store_itself() -> None:
    made = endpoint()
    assert made.venv and made.image is None
    assert made.argv[:3] == (f"{made.venv.path}/bin/vllm", "serve", f"--model={STORE}")
    assert served_argv(made) == list(made.argv)
    assert made.venv.text == "# Python 3.12\n" + "".join(f"{pin}\n" for pin in PINS)
    with pytest.raises(ValueError, match="has no image"):
        docker_argv(made)


def test_its_own_parser_judges_the_arguments_as_the_user_that_would_serve() -> None:
    made = endpoint()
    command = check_args_argv(made)
    run, checked = command[: command.index("--")], command[command.index("--") + 1 :]
    assert made.venv and checked[:3] == [f"{made.venv.path}/bin/python3", CHECK_ARGS, "vllm"]
    assert [word.replace("$$", "$") for word in checked[3:]] == list(made.argv[2:])
    # It may be asked before the checkpoint is there.
    assert not any("BindReadOnlyPaths" in word for word in run)
    assert "--property=User=rigup-serve" in run and f"--property=EnvironmentFile={made.env_file}" in run


def test_sglang_is_started_as_a_module() -> None:
    recipe = CATALOGUE.recipe("sglang-nvfp4-ixtrix")
    assert recipe.venv
    known = lock().merged(Lock(venvs={recipe.venv.key: VenvLock(requirements=PINS)}))
    made = make_plan("rig1", Settings.from_data({"recipe": recipe.id}), CATALOGUE, known, {}).endpoint("main")
    assert made.venv
    assert made.argv[:4] == (f"{made.venv.path}/bin/python3", "-m", "sglang.launch_server", f"--model-path={STORE}")


def test_other_packages_get_a_directory_and_a_digest_of_their_own() -> None:
    one = endpoint()
    assert one.venv
    other = one.model_copy(update={"venv": one.venv.model_copy(update={"requirements": PINS[:1]})})
    assert other.venv and other.venv.path != one.venv.path
    assert other.digest != one.digest


def test_the_environment_names_what_an_image_would_bring() -> None:
    made = endpoint(endpoints={"main": {"gpus": [4, 5, 6, 7]}})
    assert made.venv
    assert made.env["PATH"].startswith(f"{made.venv.path}/bin:/usr/local/cuda/bin:")
    assert (made.env["CUDA_VISIBLE_DEVICES"], made.env["CUDA_DEVICE_ORDER"]) == ("4,5,6,7", "PCI_BUS_ID")
    assert "CUDA_HOME" not in endpoint(cuda_toolkit="off").env
    assert "CUDA_VISIBLE_DEVICES" not in endpoint().env


def test_a_patched_file_is_bound_over_the_published_one_for_the_unit_alone() -> None:
    made = endpoint(REFUSING)
    place = "/etc/rigup/endpoints/main/chat_template.jinja"
    assert made.mounts == (Mount(source=f"{made.directory}/chat_template.jinja", target=place),)
    assert made.argv[-1] == f"--chat-template={place}"
    patched = made.model_copy(update={"patched_files": {"config.json": "{}"}})
    bound = f"{patched.directory}/config.json:{STORE}/config.json"
    assert settings_of(unit_text(patched))["BindReadOnlyPaths"] == [STORE, bound]


def test_the_unit_needs_no_docker_and_no_root() -> None:
    settings = settings_of(unit_text(endpoint()))
    assert settings["User"] == ["rigup-serve"]
    assert not any("docker" in value for key in ("Wants", "After", "ExecStart") for value in settings[key])
    assert settings["LimitMEMLOCK"] == ["infinity"]
    assert settings["LimitSTACK"] == ["67108864"]
    [wait] = settings["ExecStartPost"]
    assert wait.startswith("+/usr/local/lib/rigup/host/current/rigup-host wait-ready ") and "--log=vllm" in wait
    assert "--container" not in wait
    # Whatever served in a container before must let go of the GPUs.
    assert settings["ExecStartPre"] == ["-+/usr/bin/docker rm --force llm-main"]


def test_the_unit_is_confined_as_that_of_a_container_and_reads_a_store_below_a_home() -> None:
    bare, container = (settings_of(unit_text(made)) for made in (endpoint(), plan().endpoint("main")))
    differing = {"ProtectHome", "RestrictAddressFamilies"}
    confining = {
        key for key in container if key.startswith(("Capability", "Lock", "NoNew", "Private", "Protect", "Restrict"))
    }
    assert len(confining) > 10
    assert {key: bare[key] for key in confining - differing} == {key: container[key] for key in confining - differing}
    assert bare["ProtectHome"] == ["tmpfs"]

    made = endpoint(model_store="/home/models")
    assert settings_of(unit_text(made))["BindReadOnlyPaths"] == [f"/home/models/{REPO}/{REVISION}"]


def test_a_unit_with_hostile_arguments_hands_them_on_unchanged() -> None:
    made = endpoint()
    hostile = made.model_copy(update={"options": (*made.options, *HOSTILE)})
    assert exec_words(settings_of(unit_text(hostile))["ExecStart"][0]) == list(hostile.argv)


def test_systemd_itself_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    made = endpoint()
    assert made.venv
    text = unit_text(made).replace(made.argv[0], "/bin/true").replace("User=rigup-serve", "User=root")
    for program in ("/usr/bin/docker", HOST_PROGRAM):
        text = text.replace(program, "/bin/true")
    unit = tmp_path / "llm@main.service"
    unit.write_text(text)
    try:
        ran = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=HANG_S
        )
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not installed")
    assert "llm@main.service" not in ran.stderr


def test_the_environment_file_is_read_by_systemd_as_it_was_meant() -> None:
    values = {"A": "", "B": "a \"b\" $c `d` \\ #e ;f %g 'h'", "C": " led ", "D": '{"x": [1]}'}
    text = env_file_text(endpoint().model_copy(update={"env": values}))
    # systemd.exec(5): in double quotes a backslash keeps ", \, ` and $; nothing else is special.
    read_back = {
        line.partition("=")[0]: re.sub(r'\\(["\\`$])', r"\1", line.partition("=")[2][1:-1])
        for line in text.splitlines()
    }
    assert read_back == values
    with pytest.raises(RigupError, match="line break"):
        env_file_text(endpoint().model_copy(update={"env": {"A": "x\ny"}}))


def test_a_lock_with_environments_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "lab.lock"
    write(path, locked())
    assert read(path) == locked()
    assert locked().flat()["venv python3.12 vllm[b12x]==0.33.0 b12x==1.5.1 vllm"] == "0.33.0"
    assert "\nvenvs: {}\n" in (write(path, lock()) and path.read_text())


def test_without_its_packages_in_the_lock_there_is_no_plan() -> None:
    with pytest.raises(RigupError, match=r"the lock has no venv python3\.12 vllm\[b12x\]==0\.33\.0"):
        make_plan("rig1", Settings.from_data({"recipe": RECIPE.id}), CATALOGUE, lock(), PUBLISHED)


def test_a_build_from_source_is_refused() -> None:
    with pytest.raises(RigupError, match="is built from source, which rigup does not do: `rigup recipes` lists"):
        wanted = Settings.from_data({"recipe": "vllm-nvfp4-orangezed-mtp5"})
        make_plan("rig1", wanted, CATALOGUE, lock(), PUBLISHED)


# Resolving, with the real uv against a small index


def wheel(name: str, version: str, requires: str = "") -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        archive.writestr(
            zipfile.ZipInfo(f"{name}-{version}.dist-info/METADATA"),
            metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        )
        archive.writestr(
            zipfile.ZipInfo(f"{name}-{version}.dist-info/WHEEL"),
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(zipfile.ZipInfo(f"{name}-{version}.dist-info/RECORD"), "")
    return target.getvalue()


@pytest.fixture
def index() -> Iterator[Site]:
    """Two projects: `engine` needs `part`, of which a newer version has wheels for another system alone."""
    files = {
        "engine": {"engine-1.0-py3-none-any.whl": wheel("engine", "1.0", "part>=1")},
        "part": {
            "part-1.2-py3-none-any.whl": wheel("part", "1.2"),
            "part-1.3-py3-none-win_amd64.whl": wheel("part", "1.3"),
        },
    }
    with serving() as site:
        for project, wheels in files.items():
            links = [
                f'<a href="/files/{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>'
                for name, data in wheels.items()
            ]
            html = {"Content-Type": "text/html"}
            site.pages[f"/simple/{project}/"] = Answer("\n".join(links).encode(), 200, html)
            site.pages |= {f"/files/{name}": Answer(data) for name, data in wheels.items()}
        yield site


def test_pinned_packages_bring_along_what_fits_with_its_hash(index: Site) -> None:
    found = venv_lock(Venv(python="3.12", packages=("engine==1.0",)), f"{index.url}/simple")
    hashes = [hashlib.sha256(wheel(*each)).hexdigest() for each in (("engine", "1.0", "part>=1"), ("part", "1.2"))]
    assert found.requirements == (f"engine==1.0 --hash=sha256:{hashes[0]}", f"part==1.2 --hash=sha256:{hashes[1]}")


def test_what_cannot_be_resolved_is_told_with_the_setting_and_the_remedy(index: Site) -> None:
    with pytest.raises(Unresolved) as caught:
        venv_lock(Venv(python="3.12", packages=("engine==2.0",)), f"{index.url}/simple")
    assert caught.value.setting == "pypi_index"
    assert "there is no version of engine==2.0" in caught.value.reason
    assert caught.value.remedy == "change venv.packages or venv.python of the recipe"


def test_of_a_lock_file_only_names_versions_and_hashes_are_kept() -> None:
    wheels = ", ".join(f'{{url = "u", hashes = {{sha256 = "{digest}"}}}}' for digest in ("22", "11"))
    text = f'[[packages]]\nname = "a"\nversion = "1"\nwheels = [{wheels}]\n'
    assert requirements(text) == ("a==1 --hash=sha256:11 --hash=sha256:22",)


def test_plain_http_is_allowed_for_the_named_host_alone() -> None:
    assert index_arguments("https://index.example.org/simple") == ["--index-url=https://index.example.org/simple"]
    assert index_arguments("http://mirror:8000/simple")[1:] == ["--allow-insecure-host=mirror:8000"]


# Installing


def test_an_environment_is_filled_by_a_unit_of_its_own_and_marked_last() -> None:
    wanted = endpoint().venv
    assert wanted
    gone = Said(["LoadState=not-found", "ActiveState=inactive", "SubState=dead"])
    done = Said(["LoadState=loaded", "ActiveState=active", "SubState=exited", "Result=success", "Job=0"])
    actor = Actor().answers("systemctl show", gone, done)
    arguments = {
        "venv": wanted,
        "requirements": "/x.lock",
        "index": "https://index.example.org/simple",
        "pythons": "https://p",
    }
    outcome = actor.does(venv.engine, **arguments)
    assert not outcome.failed, outcome.told
    runs = [command for command in outcome.commands if "systemd-run" in command]
    assert ["uv venv" in runs[0], "uv pip sync" in runs[1], len(runs)] == [True, True, 2]
    assert "--require-hashes" in runs[1] and "UV_PYTHON_INSTALL_MIRROR=https://p" in runs[0]
    # So that a rebuild finds the unit, however early it was cut off.
    noted = next(number for number, command in enumerate(outcome.commands) if '"engines"' in command)
    assert wanted.path in outcome.commands[noted] and noted < outcome.commands.index(runs[0])
    assert outcome.commands[-1] == f"install -m 0644 /x.lock {wanted.path}/requirements.lock"


def test_an_environment_that_is_whole_is_left_alone() -> None:
    wanted = endpoint().venv
    assert wanted
    whole = hashlib.sha256(wanted.text.encode()).hexdigest()
    actor = Actor().answers(f"{wanted.path}/requirements.lock", [f"{whole}  {wanted.path}/requirements.lock"])
    arguments = {
        "venv": wanted,
        "requirements": "/x.lock",
        "index": "https://index.example.org/simple",
        "pythons": "https://p",
    }
    assert not actor.does(venv.engine, **arguments).changed
    # An earlier umask has closed the directory of Pythons.
    actor.answers("find /usr/local/lib/rigup/python -maxdepth 1", ["/usr/local/lib/rigup/python"])
    outcome = actor.does(venv.engine, **arguments)
    assert outcome.commands[-1] == "chmod -R go+rX -- /usr/local/lib/rigup/python"
