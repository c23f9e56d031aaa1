"""A recipe as Kubernetes objects: the key, a claim for the weights, a job that fetches them, the server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from rigup.plan.model import MODEL, EndpointPlan

__all__ = [
    "doubled",
    "kubernetes",
    "yaml_text",
]

# As far as the other forms: no privileges to gain, none to have.
CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
UNFILTERED = {"seccompProfile": {"type": "Unconfined"}}
KEYS = "/run/rigup"
# SGLang reads a key from its arguments or from a file like this one, and finds `--config` as a word of its own alone
# (0.5.23, srt/utils/server_args_config_parser.py).
SGLANG_KEY = "key.yaml"
VLLM_KEY = "key"

# Both engines need huggingface_hub themselves, so it is in every image; the `hf` command is not on every PATH.
FETCH = (
    "import pathlib, sys, huggingface_hub as hub; "
    "hub.snapshot_download(sys.argv[1], revision=sys.argv[2], local_dir=sys.argv[3]); "
    "pathlib.Path(sys.argv[3], '.cache/fetched').write_text(sys.argv[2])"
)
# The server's pod may come first.
AWAIT = """\
import pathlib, sys, time
mark = pathlib.Path(sys.argv[2], ".cache/fetched")
while not mark.exists() or mark.read_text() != sys.argv[1]:
    time.sleep(5)
"""
FETCH_SECONDS = 86400


def kubernetes(endpoint: EndpointPlan) -> str:
    """The objects, and how to fill the Secret that the server reads its key from: until then no server starts."""
    documents = [_key(endpoint), _claim(endpoint), _job(endpoint), _deployment(endpoint), _service(endpoint)]
    if endpoint.patched_files:
        documents.insert(0, _files(endpoint))
    return _how_to_make_the_key(endpoint) + "---\n".join(yaml_text(document) for document in documents)


def _meta(endpoint: EndpointPlan, suffix: str = "") -> dict[str, Any]:
    return {"name": endpoint.container + suffix, "labels": _labels(endpoint)}


def _labels(endpoint: EndpointPlan) -> dict[str, str]:
    return {"app.kubernetes.io/name": endpoint.container}


def _secret(endpoint: EndpointPlan) -> str:
    return f"{endpoint.container}-key"


def _how_to_make_the_key(endpoint: EndpointPlan) -> str:
    """As comments: a key in this text would stand in every terminal and file that it passes."""
    key, text = VLLM_KEY, "%s"
    if endpoint.engine == "sglang":
        key, text = SGLANG_KEY, r'api-key: \\"%s\\"'
    make = f"""printf '{{"stringData":{{"{key}":"{text}"}}}}' "$(openssl rand -hex 32)\""""
    fill = f"kubectl patch secret {_secret(endpoint)} --patch-file=/dev/stdin"
    return f"# The server waits for its key. Once these objects are there, make it:\n#   {make} | {fill}\n"


def _key(endpoint: EndpointPlan) -> dict[str, Any]:
    # Empty: what is applied again leaves alone what it does not name.
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": _meta(endpoint, "-key")}


def _files(endpoint: EndpointPlan) -> dict[str, Any]:
    """The patched files; under another name when they change, as a pod keeps what it mounted at its start."""
    meta = _meta(endpoint, f"-files-{endpoint.generation}")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": dict(endpoint.patched_files)}


def _claim(endpoint: EndpointPlan) -> dict[str, Any]:
    # A tenth more than the files: a file that is fetched again lies beside the old one for a while.
    size = endpoint.checkpoint.bytes
    room = max(1, -(-size * 11 // 10 >> 30)) if size else 300
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _meta(endpoint, "-model"),
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{room}Gi"}}},
    }


def _weights(endpoint: EndpointPlan) -> dict[str, Any]:
    return {"name": "model", "persistentVolumeClaim": {"claimName": f"{endpoint.container}-model"}}


def _job(endpoint: EndpointPlan) -> dict[str, Any]:
    # Only the hub's rate limits ask for a token: these checkpoints are public.
    token = {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}
    fetch = {
        "name": "fetch",
        "image": endpoint.image,
        "command": ["python3", "-c", doubled(FETCH)],
        "args": [endpoint.checkpoint.repo, endpoint.checkpoint.revision, MODEL],
        "env": [{"name": "HF_TOKEN", "valueFrom": token}],
        "volumeMounts": [{"name": "model", "mountPath": MODEL}],
        "securityContext": CONFINED,
    }
    pod = {"restartPolicy": "OnFailure", "containers": [fetch], "volumes": [_weights(endpoint)]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _meta(endpoint, "-fetch"),
        "spec": {"backoffLimit": 5, "template": {"spec": pod}},
    }


def _deployment(endpoint: EndpointPlan) -> dict[str, Any]:
    labels = _labels(endpoint)
    volumes = [
        _weights(endpoint),
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}},
        *({"name": f"cache-{index}", "emptyDir": {}} for index, _ in enumerate(endpoint.caches)),
        *({"name": f"tmpfs-{index}", "emptyDir": {"medium": "Memory"}} for index, _ in enumerate(endpoint.tmpfs)),
    ]
    if endpoint.patched_files:
        volumes.append({"name": "files", "configMap": {"name": _files(endpoint)["metadata"]["name"]}})
    if endpoint.engine == "sglang":
        volumes.append({"name": "key", "secret": {"secretName": _secret(endpoint), "defaultMode": 0o400}})
    await_files = {
        "name": "await-model",
        "image": endpoint.image,
        "command": ["python3", "-c", doubled(AWAIT)],
        "args": [endpoint.checkpoint.revision, MODEL],
        "volumeMounts": [{"name": "model", "mountPath": MODEL, "readOnly": True}],
        "securityContext": CONFINED,
    }
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": 60,
        "initContainers": [await_files],
        "containers": [_server(endpoint)],
        "volumes": volumes,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(endpoint),
        "spec": {
            "replicas": 1,
            # Two servers would want the same GPUs.
            "strategy": {"type": "Recreate"},
            "progressDeadlineSeconds": endpoint.ready_timeout + FETCH_SECONDS,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _server(endpoint: EndpointPlan) -> dict[str, Any]:
    # A pod is reached at its own address, not at loopback: hence the key.
    argv = ["--host=0.0.0.0" if word == f"--host={endpoint.address}" else word for word in endpoint.argv]
    env: list[dict[str, Any]] = [{"name": name, "value": doubled(env)} for name, env in sorted(endpoint.env.items())]
    mounts = [
        {"name": "model", "mountPath": MODEL, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
        *({"name": f"cache-{index}", "mountPath": path} for index, path in enumerate(endpoint.caches)),
        *({"name": f"tmpfs-{index}", "mountPath": path} for index, path in enumerate(endpoint.tmpfs)),
    ]
    for mount in endpoint.mounts:
        if mount.target != MODEL:
            name = mount.target.rpartition("/")[2]
            mounts.append({"name": "files", "mountPath": mount.target, "subPath": name, "readOnly": True})
    if endpoint.engine == "sglang":
        argv += ["--config", f"{KEYS}/{SGLANG_KEY}"]
        mounts.append({"name": "key", "mountPath": KEYS, "readOnly": True})
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
        "resources": {"limits": {"nvidia.com/gpu": endpoint.gpu_count}},
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


# Go's readers take `1e3`, `0o17` and `.5` for numbers, where Python's writes them without quotes.
_SURELY_TEXT = re.compile(r"(--|/|[A-Za-z]).*", re.DOTALL)


def doubled(value: str) -> str:
    """`$` means a variable to compose and to Kubernetes; doubled it is itself."""
    return value.replace("$", "$$")


def yaml_text(document: Mapping[str, Any]) -> str:
    """A document as YAML in which every text is a text to any reader."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out each time: `&id001` helps no reader."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", value, None if _SURELY_TEXT.fullmatch(value) else '"')


_Dumper.add_representer(str, _Dumper.text)
