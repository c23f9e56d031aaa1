"""Every parser of what others have written, with random bytes: it returns or raises its declared error, soon, in little
memory. A short form runs each time; `--soak` gives all of them together ten minutes."""

from __future__ import annotations

import ast
import base64
import gzip
import importlib
import inspect
import json
import pkgutil
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase

import rigup.facts
from rigup import boot_loader, host_config, ledger
from rigup.config import inventory, yaml_file
from rigup.distros.apt_sources import Repository
from rigup.errors import InputError
from rigup.lock import apt, hub, lockfile, openpgp, registry, resolve
from rigup.lock.http import Unresolved, Web
from rigup.operations import run_lock
from rigup.plan import model
from rigup.resources import FILES
from rigup.ssh import batch, memory
from rigup.ssh.transport import BadAnswer
from rigup_host import drift
from rigup_host.fetch import hubs, peers, request, store
from rigup_host.switch import state
from tests.unit.loopback import Site
from tests.unit.sample import REPO, REVISION
from tests.unit.small_world import CREATED, digest, hub_pages, packages, public_key

ROOT = Path(rigup.facts.__file__).parents[2]
SOAK_S = 600
ENDLESS_S = 60
"""Seconds of processor time after which an example counts as endless."""
MOST_BYTES = 1 << 30
"""Memory that a parser may take in addition to what the tests have."""
SHORT = settings(
    max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
MARK = "0123456789abcdef" * 2
COMMANDS = [batch.Command("first"), batch.Command("second")]
SERVER = "http://server.invalid"
# What has broken parsers, here and elsewhere.
WORDS = [
    "", "\0", "\n", "\r\n", " ", "\t", "-", "-1", "0", "1", "43", "1e999", "NaN", "Infinity", "9" * 5000, "0x", "\\",
    "'", '"', "{", "}", "[", "]", "[]", "{}", "null", "true", ":", ",", "=", "/", "..", "|", "%", "&a", "*a", "<<",
    "!!", "---", "\x1b]0;x\x07", "\u202e", "\ud800", "\u0663", "2027-02-30", "[" * 3000, '{"a":' * 3000, "a" * 70_000,
]  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """A parser: the file whose words it understands, how it is called, its declared errors, honest input."""

    file: str
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = ()
    honest: tuple[bytes, ...] = field(default=(), repr=False)


def text(content: bytes) -> str:
    """As a connector and a fact decode it."""
    return content.decode(errors="replace")


def lines(content: bytes) -> list[str]:
    return text(content).splitlines()


def facts() -> Iterator[tuple[str, Parser]]:
    for module in pkgutil.iter_modules(rigup.facts.__path__):
        for name, fact in vars(importlib.import_module(f"rigup.facts.{module.name}")).items():
            if isinstance(fact, type) and issubclass(fact, FactBase) and fact.__module__.endswith(f".{module.name}"):

                def read(content: bytes, fact: type[FactBase[object]] = fact) -> object:
                    return fact().process(lines(content))

                yield name, Parser(source(fact), read, (FactProcessError,))


def source(thing: object) -> str:
    return str(Path(inspect.getfile(thing)).relative_to(ROOT))  # type: ignore[arg-type]


class Body(httpx.SyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self._content


def web(pages: dict[str, bytes]) -> Web:
    """A client of a server that has these pages, by path with query."""

    def answer(asked: httpx.Request) -> httpx.Response:
        content = pages.get(asked.url.raw_path.decode())
        return httpx.Response(404 if content is None else 200, stream=Body(content or b""))

    found = Web()
    found._client = httpx.Client(transport=httpx.MockTransport(answer))
    return found


def answers(site: Site) -> dict[str, bytes]:
    return {path: page.body for path, page in site.pages.items() if not callable(page)}


def servers() -> Iterator[tuple[str, Parser]]:
    errors = (Unresolved, *resolve.UNEXPECTED)
    site = Site(SERVER)
    hub_pages(site)
    for page in ("revision/main", f"tree/{REVISION}?recursive=true&expand=false"):
        path = f"/api/models/{REPO}/{page}"

        def checkpoint(content: bytes, path: str = path) -> object:
            return hub.checkpoint_lock(web({**answers(site), path: content}), SERVER, REPO, "main")

        yield f"hub's {page[:4]}", Parser(source(hub), checkpoint, errors, (answers(site)[path],))

    def image(manifest: bytes, config: bytes) -> object:
        pages = {"manifests/c": manifest, f"manifests/{digest(single)}": single, f"blobs/{digest(config)}": config}
        return registry.image_lock(
            web({f"/v2/a/b/{path}": content for path, content in pages.items()}), "a/b:c", SERVER
        )

    def image_config(content: bytes) -> object:
        return image(json.dumps({**parts, "config": {"digest": digest(content), "size": 1}}).encode(), content)

    config = json.dumps({"created": CREATED, "config": {"Env": ["PATH=/usr/bin", "CUDA_VERSION=13.0.1"]}}).encode()
    parts = {"config": {"digest": digest(config), "size": 1}, "layers": [{"digest": digest(b""), "size": 234}]}
    single = json.dumps(parts).encode()
    platform = {"os": "linux", "architecture": "amd64"}
    index = json.dumps({"manifests": [{"digest": digest(single), "platform": platform}]}).encode()
    yield "manifest", Parser(source(registry), lambda content: image(content, config), errors, (single, index))
    yield "image configuration", Parser(source(registry), image_config, errors, (config,))

    repository = Repository("cuda", f"{SERVER}/index", f"{SERVER}/key", "/key", frozenset(), "/list", "", ())

    def package_index(content: bytes) -> object:
        return apt.read_index(web({"/index": content}), repository)

    def key_file(content: bytes) -> object:
        return apt.read_key(web({"/key": content}), repository)

    plain = gzip.decompress(packages(("docker-ce", "5:29.7.2-1~debian.13~trixie"), ("other", "1")).body)
    yield (
        "package index",
        Parser(source(apt), lambda content: package_index(gzip.compress(content, 1)), errors, (plain,)),
    )
    yield "compressed package index", Parser(source(apt), package_index, errors, (gzip.compress(plain),))
    yield "key file", Parser(source(apt), key_file, errors, (public_key("NVIDIA", "comment"),))


def files(directory: Path) -> Iterator[tuple[str, Parser]]:
    """Those that read a file themselves."""
    path = directory / "file"

    def reading(read: Callable[[], object]) -> Callable[[bytes], object]:
        def written(content: bytes) -> object:
            path.write_bytes(content)
            return read()

        return written

    host = b"hosts:\n  rig1: {address: 10.0.0.11, user: ops}\ndefaults: &a\n  recipe: vllm\n"
    locked = lockfile.text(lockfile.Lock(packages={"debian13": {"docker": {"docker-ce": "1"}}}, choices={"a": "b"}))
    yield "lock", Parser(source(lockfile), reading(lambda: lockfile.read(path)), (InputError,), (locked.encode(),))
    yield (
        "inventory",
        Parser(source(inventory), reading(lambda: inventory.load_inventory(path)), (InputError,), (host,)),
    )
    yield "YAML", Parser(source(yaml_file), reading(lambda: yaml_file.read_document(path)), (InputError,), (host,))
    kept = b'{"commands": [{"source": "true", "sudo": true, "shell": "sh", "unused": 1, "left_out": 0}]}'
    yield "memory", Parser(source(memory), reading(lambda: memory.Memory.load(path)), (), (kept,))
    asked = {"repo": "a/b", "revision": "1" * 40, "dest": f"/s/a/b/{'1' * 40}", "files": {"f": f"1 sha256:{'a' * 64}"},
             "hubs": [SERVER], "venv": "/v", "peers": [{"name": "a", "address": "b", "port": 1}]}  # fmt: skip
    yield (
        "request",
        Parser(
            source(request),
            reading(lambda: request.Request.read(path)),
            (store.Hopeless,),
            (json.dumps(asked).encode(),),
        ),
    )
    stamped = store.Store("a/b", "1" * 40, directory / "dest", {})

    def stamp(content: bytes) -> object:
        stamped.stamp_path.write_bytes(content)
        return stamped.is_stamped(stamped.dest)

    stamps = {"repo": "a/b", "revision": "1" * 40, "files": 0, "bytes": 0, "newest": 0, "machine": ""}
    yield "stamp", Parser(source(store), stamp, (), (json.dumps(stamps).encode(),))
    switches = b'{"failed": {"main": {"abc": {"recipe": "r", "at": "x", "why": "y"}}}, "last": {}}'
    yield "switches", Parser(source(state), reading(lambda: state.load(path)), (), (switches,))


def others() -> Iterator[tuple[str, Parser]]:
    frames = f"{MARK} 0 0 2 0\nok{MARK} 1 slow 0 0\n".encode()
    yield "frames", Parser(source(batch), lambda data: batch.parse(data, COMMANDS, MARK), (BadAnswer,), (frames,))
    entries = (
        b'{"added": "file", "path": "/etc/x", "sha256": "a"}\n{"added": "keys", "path": "/x", "values": {"a": [1]}}\n'
        b'{"added": "packages", "names": ["x"]}\n{"added": "removed", "names": ["x"]}\n'
    )
    yield "ledger", Parser(source(ledger), lambda data: ledger.parse(lines(data)), (), (entries,))
    yield (
        "ledger on the host",
        Parser(source(drift), lambda data: drift.last_written(lines(data)), (ValueError,), (entries,)),
    )
    report = b'{"beat": 1, "active": true, "held": ["a"], "wants": [], "fetching": ["b"]}'
    yield "report of a peer", Parser(source(peers), peers.Report.read, (ValueError,), (report,))
    events = (b'{"done": "a"}', b'{"waiting": 3.5}', b'{"in_memory": 5}',
              b'{"failed": "a", "why": "b", "hopeless": false, "wait": null, "xet": true}')  # fmt: skip
    yield "event of a client", Parser(source(hubs), lambda data: hubs.read_event(text(data)), (ValueError,), events)
    armored, key = public_key("NVIDIA"), base64.b64decode(public_key("NVIDIA").splitlines()[2])

    def packets(content: bytes) -> object:
        return openpgp.fingerprints(armored.replace(base64.b64encode(key), base64.b64encode(content)))

    yield "armored key", Parser(source(openpgp), openpgp.fingerprints, (ValueError,), (armored,))
    yield "packets of a key", Parser(source(openpgp), packets, (ValueError,), (key,))
    held = (b"taken", b"held 0123 me box 12 34")
    yield "holder", Parser(source(run_lock), lambda data: run_lock.parse_holder(lines(data)), (ValueError,), held)
    plan = b'{"endpoints": [{"name": "main", "checkpoint": {"repo": "a/b"}}], "settings": {"kernel_args": ["x"]}}'
    yield "kept plan", Parser(source(model), lambda data: model.kept_plan(text(data)), (), (plan,))
    daemon = b'{"data-root": "/x", "features": {"containerd-snapshotter": true}, "proxies": {"http-proxy": "x"}}'
    yield (
        "Docker's store",
        Parser(
            source(host_config),
            lambda data: host_config.docker_store(text(data), text(data)),
            (),
            (daemon, b'root = "/x"'),
        ),
    )
    listed = b'[{"isDefault": true, "version": "6.12", "linux": "/x/linux", "id": "x.conf", "options": "ro"}]'
    entries = b"--- entries\nsystemd-boot\n" + listed
    menu = (
        b"--- environment\nsaved_entry=1>0\n--- menu\nset default=\"${saved_entry}\"\nsubmenu 'x' {\nlinux /x ro\n}\n"
    )
    yield (
        "boot loader",
        Parser(source(boot_loader), lambda data: boot_loader.next_boot(lines(data), {"6.12"}), (), (entries, menu)),
    )
    defaults = b"A=\"$B \\\n c\" # d\nexport B='e'`f`$(g)\\ h\n"
    yield (
        "GRUB's default files",
        Parser(source(host_config), lambda data: host_config.shell_variables([text(data)]), (), (defaults,)),
    )
    yield (
        "Docker's proxies",
        Parser(source(host_config), lambda data: host_config.daemon_variables(text(data)), (), (daemon,)),
    )


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parser]:
    return dict([*facts(), *servers(), *others(), *files(tmp_path_factory.mktemp("files"))])


NAMES = [name for name, _ in [*facts(), *servers(), *others(), *files(Path())]]


class Endless(BaseException):
    """No parser may catch it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Limit memory, and the processor time of what is between two calls of `setitimer`."""

    def end(*_: object) -> None:
        raise Endless(f"no end within {ENDLESS_S} s of processor time")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    present = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    former = signal.signal(signal.SIGVTALRM, end)
    resource.setrlimit(resource.RLIMIT_AS, (present + MOST_BYTES, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, former)


def words_of(file: str) -> list[str]:
    """The texts in a source file: what its parser looks for, among others."""
    found = {node.value for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.Constant)}
    return sorted(word for word in found if isinstance(word, str) and len(word) < 40)


def inputs(parser: Parser) -> st.SearchStrategy[bytes]:
    """Random words in a row, JSON, and honest input with changes."""
    names = words_of(parser.file)
    known = st.sampled_from(names or [""])
    word = (known | st.sampled_from(WORDS)).map(lambda word: word.encode(errors="surrogatepass")) | st.binary(
        max_size=8
    )
    leaf = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | known | st.sampled_from(WORDS)
    tree = st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(known, inner, max_size=4), max_leaves=12
    )
    row = st.lists(word, max_size=20).map(b"".join)
    changes = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 30), word), max_size=5)
    return (
        row
        | tree.map(lambda value: json.dumps(value).encode())
        | st.builds(changed, st.sampled_from(parser.honest or (b"",)), changes)
    )


def changed(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Replace so many bytes at each thousandth by others."""
    for place, count, word in changes:
        at = place * len(content) // 1000
        content = content[:at] + word + content[at + count :]
    return content


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_end_in_a_value_or_in_the_declared_error(
    parsers: dict[str, Parser], name: str, request: pytest.FixtureRequest
) -> None:
    parser = parsers[name]
    generated = inputs(parser)
    for content in parser.honest:
        parser.read(content)

    @example(b"")
    @example(b"[" * 200_000)
    @example(b'{"a":' * 200_000)
    def tried(content: bytes) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, ENDLESS_S)
        try:
            parser.read(content)
        except parser.errors as error:
            assert not isinstance(error.__context__, MemoryError), "it takes too much memory"

    with bounded():
        SHORT(given(generated)(tried))()
        if request.config.getoption("--soak"):
            end = time.monotonic() + SOAK_S / len(NAMES)
            while time.monotonic() < end:
                settings(SHORT, max_examples=50, derandomize=False)(given(generated)(tried))()


# What parses, by the names of the functions; `from_json` has only one error.
PARSING = ("from_json", "json.load", "json.loads", "tomllib.load", "tomllib.loads", "yaml.load", "yaml.parse",
           "gzip.GzipFile", "base64.b64decode", "struct.unpack")  # fmt: skip


def test_every_module_that_parses_is_here(parsers: dict[str, Parser]) -> None:
    here = {parser.file for parser in parsers.values()}
    for path in [*(ROOT / "rigup").rglob("*.py"), *(FILES / "rigup_host").rglob("*.py")]:
        file = str(path.relative_to(ROOT))
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        if any(call == name or call.endswith(f".{name}") for call in calls for name in PARSING):
            assert (file in here) != (file in ELSEWHERE), f"{file}: test its parser here, or say why not"
    assert all((ROOT / file).exists() for file in ELSEWHERE)


ELSEWHERE = {
    "files/rigup_host/bench/request.py": "the answers of the host's own engine, in test_host_programs_bench",
    "files/rigup_host/cards.py": "the output of check_cards.py, in test_host_programs_cards",
    "files/rigup_host/chat.py": "arguments of a tool call, in test_smoke",
    "files/rigup_host/fetch/hub_worker.py": "orders of the downloader itself",
    "files/rigup_host/files.py": "from_json itself",
    "files/rigup_host/hardware.py": "files of root, in test_host_programs_hardware",
    "files/rigup_host/pull.py": "the answers of the host's own Docker and logins of root, in test_host_programs_pull",
    "files/rigup_host/smoke.py": "an argument of a deploy",
    "files/rigup_host/switch/drain.py": "the answers of load balancers, in test_host_programs_drain",
    "files/rigup_host/wait_ready.py": "the answer of the host's own engine, in test_host_programs_wait",
    "rigup/audit/subject.py": "output of a host's commands: anything but JSON counts as a failure",
    "rigup/catalog/apply_patches.py": "verified files of the catalog's checkpoints, in test_catalog_apply_patches",
    "rigup/catalog/engine_options.py": "rigup's own data",
    "rigup/cli/audit.py": "the result of an audit that rigup has just run",
    "rigup/cli/plan.py": "the result of a plan that rigup has just made",
    "rigup/config/yaml_syntax.py": "for yaml_file, which is here",
    "rigup/facts/reading.py": "for facts, which are all here",
    "rigup/lock/published.py": "published files of a checkpoint, in test_cli_new_recipe",
    "rigup/lock/http.py": "for the hub and the registry, which are here",
    "rigup/lock/pypi.py": "the output of uv",
    "rigup/render/clients/merge.py": "a client's own file, in test_cli_connect_write",
    "rigup/ssh/host_keys.py": "the user's known_hosts, in test_ssh_host_keys",
    "rigup/ssh/identities.py": "the user's own keys, in test_ssh_connect",
    "rigup/operations/files.py": "a host's daemon.json, in test_operations_files",
    "rigup/operations/reboot.py": "a file of rigup's own on a host",
    "rigup/operations/teardown/files.py": "a host's daemon.json, in test_operations_teardown",
    "rigup/preflight/docker.py": "a host's daemon.json, in test_preflight",
    "rigup/run/report.py": "the events of a run of this machine",
    "rigup/ssh/fact_calls.py": "arguments of rigup's own facts",
    "rigup/text.py": "from_json itself",
}
