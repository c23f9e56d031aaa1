"""Render an endpoint as Kubernetes objects: secret, claim for the weights, job that downloads them, server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from rigup.paths import DRAFTER, KEY_MOUNT, MODEL
from rigup.plan.model import ENGINE_MEMORY_BYTES, CheckpointPlan, EndpointPlan

# The same as in the other forms: no privileges.
CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
UNFILTERED = {"seccompProfile": {"type": "Unconfined"}}
# SGLang reads a key from its arguments or from a file like this one, and recognizes `--config` only as a separate word
# (0.5.23, srt/utils/server_args_config_parser.py).
SGLANG_KEY = "key.yaml"
VLLM_KEY = "key"

# Both engines depend on huggingface_hub, so every image has it; the `hf` command is not on every PATH.
FETCH = (
    "import pathlib, sys, huggingface_hub as hub; "
    "hub.snapshot_download(sys.argv[1], revision=sys.argv[2], local_dir=sys.argv[3]); "
    "pathlib.Path(sys.argv[3], '.cache/fetched').write_text(sys.argv[2])"
)
# The server's pod may start before the download.
AWAIT = """\
import pathlib, sys, time
mark = pathlib.Path(sys.argv[2], ".cache/fetched")
while not mark.exists() or mark.read_text() != sys.argv[1]:
    time.sleep(5)
"""
FETCH_SECONDS = 86400


def kubernetes(endpoint: EndpointPlan) -> str:
    """Return the objects, and comments on how to fill the Secret with the API key: no server starts before that."""
    claims = [_claim(endpoint, path, checkpoint) for path, checkpoint in _weights(endpoint)]
    documents = [_key(endpoint), *claims, _job(endpoint), _deployment(endpoint), _service(endpoint)]
    if endpoint.patched_files:
        documents.insert(0, _files(endpoint))
    return "---\n".join(yaml_text(document) for document in documents) + _how_to_make_the_key(endpoint)


def _meta(endpoint: EndpointPlan, suffix: str = "") -> dict[str, Any]:
    return {"name": endpoint.container + suffix, "labels": _labels(endpoint)}


def _labels(endpoint: EndpointPlan) -> dict[str, str]:
    return {"app.kubernetes.io/name": endpoint.container}


def _secret(endpoint: EndpointPlan) -> str:
    return f"{endpoint.container}-key"


def _how_to_make_the_key(endpoint: EndpointPlan) -> str:
    """Return the instructions as comments: a key in this text would end up in terminals and files."""
    key, text = VLLM_KEY, "%s"
    if endpoint.engine == "sglang":
        key, text = SGLANG_KEY, r'api-key: \\"%s\\"'
    make = f"""printf '{{"stringData":{{"{key}":"{text}"}}}}' "$(openssl rand -hex 32)\""""
    fill = f"kubectl patch secret {_secret(endpoint)} --patch-file=/dev/stdin"
    return f"# The server waits for its key. Once these objects exist, create it:\n#   {make} | {fill}\n"


def _key(endpoint: EndpointPlan) -> dict[str, Any]:
    # Empty, because applying this again leaves alone the data that it does not name.
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": _meta(endpoint, "-key")}


def _files(endpoint: EndpointPlan) -> dict[str, Any]:
    """Return the patched files; the name changes with them, because a pod keeps what it mounted at its start."""
    meta = _meta(endpoint, f"-files-{endpoint.generation}")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": dict(endpoint.patched_files)}


def _weights(endpoint: EndpointPlan) -> Iterator[tuple[str, CheckpointPlan]]:
    """Yield the path in the container of each checkpoint, and the checkpoint. The volume has the path's name."""
    return zip((MODEL, DRAFTER), endpoint.checkpoints, strict=False)


def _claim(endpoint: EndpointPlan, path: str, checkpoint: CheckpointPlan) -> dict[str, Any]:
    # A tenth more than the files, because a file that is downloaded again coexists with the old one for a while.
    size = checkpoint.bytes
    gib = max(1, -(-size * 11 // 10 >> 30)) if size else 300
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _meta(endpoint, path.replace("/", "-")),
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{gib}Gi"}}},
    }


def _volumes(endpoint: EndpointPlan) -> list[dict[str, Any]]:
    return [
        {"name": path[1:], "persistentVolumeClaim": {"claimName": endpoint.container + path.replace("/", "-")}}
        for path, _ in _weights(endpoint)
    ]


def _volume_mount(path: str) -> dict[str, Any]:
    return {"name": path[1:], "mountPath": path, "readOnly": True}


def _job(endpoint: EndpointPlan) -> dict[str, Any]:
    # The checkpoints are public; a token only raises the hub's rate limits.
    token = {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}
    fetches = [
        {
            "name": "fetch" if path == MODEL else f"fetch{path.replace('/', '-')}",
            "image": endpoint.image,
            "command": ["python3", "-c", doubled(FETCH)],
            "args": [checkpoint.repo, checkpoint.revision, path],
            "env": [{"name": "HF_TOKEN", "valueFrom": token}],
            "volumeMounts": [{"name": path[1:], "mountPath": path}],
            "securityContext": CONFINED,
        }
        for path, checkpoint in _weights(endpoint)
    ]
    pod = {"restartPolicy": "OnFailure", "containers": fetches, "volumes": _volumes(endpoint)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _meta(endpoint, "-fetch"),
        "spec": {"backoffLimit": 5, "template": {"spec": pod}},
    }


def _deployment(endpoint: EndpointPlan) -> dict[str, Any]:
    labels = _labels(endpoint)
    volumes = [
        *_volumes(endpoint),
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}},
        *({"name": f"cache-{index}", "emptyDir": {}} for index, _ in enumerate(endpoint.caches)),
        *({"name": f"tmpfs-{index}", "emptyDir": {"medium": "Memory"}} for index, _ in enumerate(endpoint.tmpfs)),
    ]
    if endpoint.patched_files:
        volumes.append({"name": "files", "configMap": {"name": _files(endpoint)["metadata"]["name"]}})
    if endpoint.engine == "sglang":
        volumes.append({"name": "key", "secret": {"secretName": _secret(endpoint), "defaultMode": 0o400}})
    await_files = [
        {
            "name": f"await{path.replace('/', '-')}",
            "image": endpoint.image,
            "command": ["python3", "-c", doubled(AWAIT)],
            "args": [checkpoint.revision, path],
            "volumeMounts": [_volume_mount(path)],
            "securityContext": CONFINED,
        }
        for path, checkpoint in _weights(endpoint)
    ]
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": 60,
        "initContainers": await_files,
        "containers": [_server(endpoint)],
        "volumes": volumes,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(endpoint),
        "spec": {
            "replicas": 1,
            # Two servers would need the same GPUs.
            "strategy": {"type": "Recreate"},
            "progressDeadlineSeconds": endpoint.ready_timeout + FETCH_SECONDS,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _server(endpoint: EndpointPlan) -> dict[str, Any]:
    # A pod is reached at its own address, not on loopback: hence the key.
    argv = list(endpoint.model_copy(update={"address": "0.0.0.0"}).argv)
    env: list[dict[str, Any]] = [{"name": name, "value": doubled(env)} for name, env in sorted(endpoint.env.items())]
    mounts = [
        *(_volume_mount(path) for path, _ in _weights(endpoint)),
        {"name": "shm", "mountPath": "/dev/shm"},
        *({"name": f"cache-{index}", "mountPath": path} for index, path in enumerate(endpoint.caches)),
        *({"name": f"tmpfs-{index}", "mountPath": path} for index, path in enumerate(endpoint.tmpfs)),
    ]
    weights = [path for path, _ in _weights(endpoint)]
    for mount in endpoint.mounts:
        if mount.target not in weights:
            name = mount.target.rpartition("/")[2]
            mounts.append({"name": "files", "mountPath": mount.target, "subPath": name, "readOnly": True})
    if endpoint.engine == "sglang":
        argv += ["--config", f"{KEY_MOUNT}/{SGLANG_KEY}"]
        mounts.append({"name": "key", "mountPath": KEY_MOUNT, "readOnly": True})
    else:
        key = {"secretKeyRef": {"name": _secret(endpoint), "key": VLLM_KEY}}
        env.append({"name": "VLLM_API_KEY", "valueFrom": key})
    # The engines answer this path without a key.
    probe = {"httpGet": {"path": endpoint.ready_path, "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5}
    return {
        "name": "server",
        "image": endpoint.image,
        "args": [doubled(word) for word in argv],
        "env": env,
        "ports": [{"name": "http", "containerPort": endpoint.port}],
        "resources": {
            "requests": {"memory": f"{ENGINE_MEMORY_BYTES >> 30}Gi"},
            "limits": {"nvidia.com/gpu": endpoint.gpu_count},
        },
        "startupProbe": {**probe, "failureThreshold": -(-endpoint.ready_timeout // 10)},
        "readinessProbe": probe,
        "livenessProbe": {**probe, "failureThreshold": 6},
        "volumeMounts": mounts,
        "securityContext": {**CONFINED, **(UNFILTERED if endpoint.security_opt else {})},
    }


def _service(endpoint: EndpointPlan) -> dict[str, Any]:
    port = {"name": "http", "port": endpoint.port, "targetPort": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(endpoint),
        "spec": {"selector": _labels(endpoint), "ports": [port]},
    }


# Go's YAML parsers read `1e3`, `0o17` and `.5` as numbers, and Python's writer does not quote them.
_PLAIN_STRING = re.compile(r"(--|/|[A-Za-z]).*", re.DOTALL)


def doubled(value: str) -> str:
    """Return the value with each `$` doubled, because compose and Kubernetes expand a single one."""
    return value.replace("$", "$$")


def yaml_text(document: Mapping[str, Any]) -> str:
    """Return a document as YAML in which every parser reads strings as strings."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """A dumper without anchors such as `&id001`, and with quotes where other parsers need them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", value, None if _PLAIN_STRING.fullmatch(value) else '"')


_Dumper.add_representer(str, _Dumper.text)
