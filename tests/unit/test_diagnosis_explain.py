"""Diagnosis: logs in the engines' own words, each to its known cause, and harmless ones to none."""

# ruff: noqa: E501 - log lines are as long as they are.

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from rigup.catalog.engine_options import ordered, releases
from rigup.cli import main
from rigup.config.yaml_file import read_document
from rigup.diagnosis.explain import Diagnosis, diagnose, explain, fatal_text, fingerprints
from tests.captures import capture
from tests.unit.sample import CATALOGUE
from tools.score_diagnosis import LOGS, SETS, Excerpt, said, score

CORE = "(EngineCore pid=171) ERROR 11-23 20:56:31 [core.py:1100]"
API = "(APIServer pid=1)"
DIED = f"""{CORE} EngineCore failed to start.
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}"""

FAILURES = {
    "router-read-as-fp4": f"""{CORE}     param.weight_loader(param, loaded_weight)
{CORE} AssertionError: Tried to load weights of size torch.Size([512, 4096])to a parameter of size torch.Size([512, 2048])
{DIED}""",
    "weights-do-not-fit": f"""{CORE} RuntimeError: The size of tensor a (4096) must match the size of tensor b (2048) at non-singleton dimension 1
{DIED}""",
    "drafter-read-as-fp4": f"""{CORE}   File "/tmp/site/vllm/model_executor/models/qwen3_5_mtp.py", line 333, in load_weights
{CORE}     param.load_column_parallel_weight(loaded_weight=loaded_weight)
{CORE}   File "/tmp/site/vllm/model_executor/parameter.py", line 153, in load_column_parallel_weight
{CORE}     assert self.data.shape == loaded_weight.shape
{CORE} AssertionError
{DIED}""",
    "architecture-unknown": "ValueError: The checkpoint you are trying to load has model type `qwen3_5_moe` but Transformers does not recognize this architecture. This could be because of an issue with the checkpoint, or because your version of Transformers is out of date.",
    "tool-parser-unknown": f"""{API}   File "/usr/local/lib/python3.12/dist-packages/vllm/entrypoints/openai/api_server.py", line 1900, in run_server
{API}     raise KeyError(f"invalid tool call parser: {{args.tool_call_parser}} "
{API} KeyError: 'invalid tool call parser: qwen35_coder (chose from {{ deepseek_v3,hermes,qwen3_coder,qwen3_xml }})'""",
    "argument-unknown": """usage: vllm [-h] [-v] {chat,complete,serve,launch,bench,collect-env,run-batch} ...
vllm: error: unrecognized arguments: --enable-pcie-oneshot-allreduce""",
    "argument-ambiguous": """usage: launch_server.py [-h] --model-path MODEL_PATH
launch_server.py: error: ambiguous option: --cuda-graph-max-bs=64 could match --cuda-graph-max-bs-decode, --cuda-graph-max-bs-prefill""",
    "context-too-long": "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, User-specified max_model_len (921600) is greater than the derived max_model_len (max_position_embeddings=262144 or model_max_length=None in model's config.json). To allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with extreme caution.",
    "too-few-gpus": "  Value error, World size (8) is larger than the number of available GPUs (4) in this node. If this is intentional and you are using:",
    "mamba-blocks": f"{CORE} ValueError: max_num_seqs (1024) exceeds available Mamba cache blocks (969). Each decode sequence requires one Mamba cache block, so CUDA graph capture cannot proceed. Please lower max_num_seqs to at most 969 or increase gpu_memory_utilization.\n{DIED}",
    "gpu-memory-taken": f"{CORE} ValueError: Free memory on device cuda:0 (12.41/94.97 GiB) on startup is less than desired GPU memory utilization (0.8, 75.98 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.\n{DIED}",
    "kv-cache-too-small": f"{CORE} ValueError: To serve at least one request with the model's max seq len (262144), (8.03 GiB KV cache is needed, which is larger than the available KV cache memory (5.41 GiB). Based on the available memory, the estimated maximum model length is 176384.\n{DIED}",
    "nccl-buffers": "rig1:171:171 [2] misc/alloc.cc:180 NCCL WARN Failed to CUDA calloc 10485760 bytes\ntorch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:93",
    "out-of-memory": f"{CORE} torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.88 GiB. GPU 0 has a total capacity of 94.97 GiB of which 2.14 GiB is free. Process 4711 has 92.82 GiB memory in use.\n{DIED}",
    "ptx-newer-than-driver": f"{CORE} torch.AcceleratorError: CUDA error: the provided PTX was compiled with an unsupported toolchain.\n{DIED}",
    "forward-compatibility": "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that might have already set an error? Error 804: forward compatibility was attempted on non supported HW",
    "gpus-lost-in-container": "Failed to initialize NVML: Unknown Error",
    "driver-mismatch": "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 595.91",
    "gpus-not-listed": "docker: Error response from daemon: failed to create task for container: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7",
    "no-gpu-in-container": "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.",
    "ulimit-refused": "docker: Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error setting rlimits for ready process: error setting rlimit type 8: operation not permitted",
    "triton-missing": f"""{CORE} Initializing a V1 LLM engine (v0.32.0) with config: model='/model', speculative_config=SpeculativeConfig(method='mtp', model='/model', num_spec_tokens=2)
{CORE} TypeError: 'function' object is not subscriptable
{API} vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.""",
    "nccl-timeout": "[rank1]:[E1123 20:56:31.1 ProcessGroupNCCL.cpp:685] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=2, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600021 milliseconds before timing out.",
    "nccl-deadlock": "not ready after 312 s: the start has stalled: 301 s without progress, GPU memory in MiB: [842, 842, 842, 842]; last log line: (Worker_TP0 pid=210) INFO 11-23 20:56:31 [pynccl.py:111] vLLM is using nccl==2.28.9",
    "chat-template-missing": "ValueError: As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the tokenizer does not define one.",
    "two-system-messages": "jinja2.exceptions.TemplateError: System message must be at the beginning.",
    "tool-stream-with-speculation": "    expected_call = self.streamed_args_for_tool[index]\nIndexError: list index out of range",
    "port-taken": "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use",
    "image-gone": "Error response from daemon: manifest for vllm/vllm-openai:nightly-f91808ae0ddf750acfdeb351fa072c91d4d678fc not found: manifest unknown: manifest unknown",
    "disk-full": "failed to register layer: write /usr/local/lib/python3.12/dist-packages/torch/lib/libtorch_cuda.so: no space left on device",
    "no-kernel-for-this-gpu": f"{CORE} torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device\n{DIED}",
    "gpu-off-the-bus": "NVRM: Xid (PCI:0000:41:00): 79, pid=4711, name=VLLM::Worker_TP, GPU has fallen off the bus.",
    "quantization-file-incomplete": "ValueError: NVFP4 quantization requires the following fields in hf_quant_config.json: ['exclude_modules']",
    "weights-missing": f"""{CORE} EngineCore failed to start.
{CORE} RuntimeError: Cannot find any model weights with `/model`
{DIED}""",
    "reasoning-parser-unknown": f"""{API}     raise KeyError(
{API} KeyError: "Reasoning parser 'qwen35' not found. Available parsers: deepseek_r1, glm45, mistral, nemotron_v3, openai_gptoss, qwen3, seed_oss, step3\"""",
    "shared-memory": """rig1:210:210 [0] misc/shmutils.cc:88 NCCL WARN Error: failed to extend /dev/shm/nccl-WU88OE to 9637892 bytes, error: No space left on device (28)
rig1:210:210 [0] misc/shmutils.cc:132 NCCL WARN Error while creating shared memory segment /dev/shm/nccl-WU88OE (size 9637888), error: No space left on device (28)
RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)""",
    "cuda-does-not-start": "RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu.",
    "compiler-missing": f"""(Worker_TP1 pid=3534) ERROR 11-23 20:58:17 [multiproc_executor.py:694] RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist
{DIED}""",
    "cudnn-too-old": """  File "/sgl-workspace/sglang/python/sglang/srt/server_args.py", line 4975, in check_torch_2_9_1_cudnn_compatibility
RuntimeError: CRITICAL WARNING: PyTorch 2.9.1 & CuDNN Compatibility Issue Detected
Current Environment: PyTorch 2.9.1+cu130 | CuDNN 9.13""",
    "registry-limit": "Error response from daemon: toomanyrequests: You have reached your unauthenticated pull rate limit.",
    "checkpoint-refused": """huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-66f4b037-1bf3d7d219afbc904ee05694;5601d2c9)
Cannot access gated repo.
Access to model org/name is restricted. You must have access to it and be authenticated to access it. Please log in.""",
    "nccl-versions-differ": "rig1:210:210 [0] init.cc:1401 NCCL WARN Mismatched NCCL version detected : rank 0 version 22809 rank 1 version 22705",
    "driver-flavor": """NVRM: The NVIDIA GPU 0000:41:00.0 (PCI ID: 10de:2bb1)
NVRM: installed in this system requires use of the NVIDIA open kernel modules.
NVRM: GPU 0000:41:00.0: RmInitAdapter failed! (0x22:0x56:884)""",
    "driver-lacks-card": """NVRM: The NVIDIA GPU 0000:41:00.0 (PCI ID: 10de:2bb1)
NVRM: installed in this system is not supported by the
NVRM: NVIDIA 535.183.01 driver release.
NVRM: None of the NVIDIA devices were initialized.""",
    "container-name-taken": 'docker: Error response from daemon: Conflict. The container name "/main" is already in use by container "4f5c0e". You have to remove (or rename) that container to be able to reuse that name.',
    "docker-not-running": "unable to configure the Docker daemon with file /etc/docker/daemon.json: invalid character '}' looking for beginning of object key string",
    "mount-refused": "docker: Error response from daemon: invalid mount config for type \"bind\": bind source path does not exist: /srv/models/qwen",
    "compose-refused": "validating /srv/compose.yaml: services.vllm.deploy.resources.reservations Additional property gpus is not allowed",
    "filesystem-fails": "OSError: [Errno 5] Input/output error: '/model/model-00001-of-00024.safetensors'",
    "cpu-lacks-instructions": "/entrypoint.sh: line 12:    17 Illegal instruction     (core dumped) python3 -m sglang.launch_server",
    "packages-refused": "E: Unable to correct problems, you have held broken packages.",
    "file-missing": "FileNotFoundError: [Errno 2] No such file or directory: '/templates/qwen.jinja'",
    "container-refused": "docker: Error response from daemon: unknown log opt 'maxsize' for json-file log driver.",
    "multimodal-input-fails": "ValueError: Failed to apply PixtralProcessor on data={'text': '[IMG]'} with kwargs={}",
}  # fmt: skip

HARMLESS = {
    "a quick start": f"""{API} INFO 11-23 20:56:02 [api_server.py:1351] vLLM API server version 0.32.0
{API} INFO:     Application startup complete.
{API} INFO:     127.0.0.1:41112 - "GET /health HTTP/1.1" 200 OK""",
    "variables that are gone": f"{API} WARNING 11-23 20:56:02 [interface.py:1458] Unknown vLLM environment variable detected: VLLM_NVFP4_GEMM_BACKEND",
    "FP4 through Marlin": f"{API} WARNING 11-23 20:56:05 [marlin_utils_fp4.py:215] Your GPU does not have native support for FP4 computation but FP4 quantization is being used. Weight-only FP4 compression will be used leveraging the Marlin kernel.",
    "NCCL that goes on": """(Worker_TP0 pid=210) INFO 11-23 20:56:31 [pynccl.py:111] vLLM is using nccl==2.28.9
rig1:210:210 [0] NCCL INFO Bootstrap: Using enp1s0:10.0.0.11<0>
(Worker_TP0 pid=210) INFO 11-23 20:56:35 [cuda_communicator.py:187] Using ['PYNCCL'] all2all manager.""",
    "a deprecated drafter": f"{API} WARNING 11-23 20:56:02 [speculative.py:1246] method `qwen3_next_mtp` is deprecated and replaced with mtp.",
    "a longer context, allowed": f"{API} WARNING 11-23 23:29:06 [model.py:2660] User-specified max_model_len (921600) is greater than the derived max_model_len (max_position_embeddings=262144.0 or model_max_length=None in model's config.json). VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with extreme caution.",
    "loading": """(EngineCore pid=171) INFO 11-23 20:57:01 [default_loader.py:397] Loading weights took 61.40 seconds
Loading safetensors checkpoint shards: 100% Completed | 24/24 [01:01<00:00,  2.56s/it]
(EngineCore pid=171) INFO 11-23 20:57:12 [gpu_worker.py:440] Available KV cache memory: 23.43 GiB
(EngineCore pid=171) INFO 11-23 20:57:12 [kv_cache_utils.py:1690] GPU KV cache size: 767,136 tokens
(EngineCore pid=171) INFO 11-23 20:57:12 [kv_cache_utils.py:1695] Maximum concurrency for 262,144 tokens per request: 10.85x""",
    "custom all-reduce off": "(Worker_TP0 pid=210) WARNING 11-23 20:56:33 [custom_all_reduce.py:166] Custom allreduce is disabled because it's not supported on more than two PCIe-only GPUs. To silence this warning, specify disable_custom_all_reduce=True explicitly.",
    "a client's mistake": f"""{API} INFO:     127.0.0.1:50312 - "POST /v1/chat/completions HTTP/1.1" 400 Bad Request
{API} ERROR 11-23 21:10:00 [serving.py:332] ValueError: This model's maximum context length is 262144 tokens. However, you requested 300000 tokens.""",
    "a stop": f"""{API} INFO 11-23 21:30:00 [launcher.py:110] Shutting down FastAPI HTTP server.
{API} INFO:     Application shutdown complete.""",
    "SGLang up": """[2026-11-23 20:56:01] server_args=ServerArgs(model_path='/model', tp_size=4, mem_fraction_static=0.93)
[2026-11-23 20:57:20 TP0] max_total_num_tokens=767136, chunked_prefill_size=16384, max_running_requests=64, context_len=262144
[2026-11-23 20:58:02] The server is fired up and ready to roll!""",
    "a slow stall that went on": "waiting for 120 of at most 2700 s: http://127.0.0.1:8000/health: Connection refused",
}  # fmt: skip


# Further wordings of these causes.
ALSO = {
    "reasoning-parser-unknown": f"{API} KeyError: 'invalid reasoning parser: qwen35 (chose from {{ deepseek_r1,qwen3 }})'",
    "cuda-does-not-start": "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero.",
    "compiler-missing": "/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found",
    "registry-limit": "Error response from daemon: toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating and upgrading",
    "host-memory": "kernel: oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/docker,task=python3,pid=4711,uid=0",
}

# Errors to which many causes lead, each by the symptom as which it is reported.
SYMPTOMS = {
    "illegal-access": f"{CORE} torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
    "nccl-error": "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "jit-failed": "ninja: build stopped: subcommand failed.",
    "process-killed": "subprocess.CalledProcessError: Command '['python3', '-m', 'sglang.launch_server']' died with <Signals.SIGKILL: 9>.",
    "engine-died": f"{API} RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}",
    "numbers-invalid": "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0",
    "gpu-exception": "NVRM: Xid (PCI:0000:41:00): 31, pid=4711, name=VLLM::Worker_TP, channel 0x00000009",
}  # fmt: skip

# Fingerprints whose line is in no public excerpt; their source quotes the line of code that prints it.
WITHOUT_EXCERPT = {
    "quantization-file-incomplete",
    "nccl-buffers",
    "triton-missing",
    "nccl-versions-differ",
    "driver-lacks-card",
    "container-name-taken",
    "docker-not-running",
    "mount-refused",
    "compose-refused",
    "filesystem-fails",
    "cpu-lacks-instructions",
    "packages-refused",
    "file-missing",
    "multimodal-input-fails",
    "container-refused",
}
CAPTURED = {
    "vllm-h200/0.20.2-mtp-fc-miniature.txt": "drafter-read-as-fp4",
    "vllm-h200/0.25.1-mtp-fc-real-sizes.txt": "drafter-read-as-fp4",
    "vllm-h200/0.25.1-router-real-sizes.txt": "router-read-as-fp4",
    "vllm-h200/0.25.1-two-system-messages-400.txt": "two-system-messages",
}

START = f"{API} INFO 11-23 20:56:02 [api_server.py:1351] vLLM API server version 0.33.0"
READY = f"{API} INFO:     Application startup complete."
SGLANG = "[2026-11-23 20:56:01] server_args=ServerArgs(model_path='/model', tp_size=4)"
OUT_OF_MEMORY, PORT_TAKEN = FAILURES["out-of-memory"].splitlines()[0], FAILURES["port-taken"]


def ids(log: str, *host: str) -> list[str]:
    return [each.fingerprint.id for each in diagnose(log.splitlines(), host).causes]


@pytest.mark.parametrize("cause", ALSO)
def test_another_wording_is_taken_for_the_same_cause(cause: str) -> None:
    assert ids(ALSO[cause]) == [cause]


@pytest.mark.parametrize("cause", FAILURES)
def test_a_log_is_taken_for_its_cause_first_of_all(cause: str) -> None:
    assert ids(FAILURES[cause])[:1] == [cause]


@pytest.mark.parametrize("log", HARMLESS)
def test_a_harmless_log_is_taken_for_nothing(log: str) -> None:
    assert diagnose(HARMLESS[log].splitlines()) == Diagnosis([], [])


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_what_many_causes_lead_to_is_a_symptom(symptom: str) -> None:
    found = diagnose(SYMPTOMS[symptom].splitlines())
    assert not found.causes
    assert [each.fingerprint.id for each in found.symptoms] == [symptom]
    assert found.lines()[0].startswith("Symptom, not a cause: ")


@pytest.mark.parametrize("name", CAPTURED)
def test_a_captured_log_is_taken_for_its_cause(name: str) -> None:
    assert ids(capture(name))[:1] == [CAPTURED[name]]


@pytest.mark.parametrize("excerpt", score(LOGS), ids=lambda each: each.file)
def test_a_public_log_of_the_working_half_has_its_cause(excerpt: Excerpt) -> None:
    assert excerpt.verdict in ("right", "healthy, no cause"), f"{excerpt.said} instead of {excerpt.expect}"


@pytest.mark.parametrize("name", SETS)
def test_no_healthy_log_has_a_cause(name: str) -> None:
    assert [each.file for each in score(SETS[name]) if each.verdict == "healthy, with a cause"] == []


def test_every_fingerprint_is_named_for_an_excerpt_or_a_capture() -> None:
    named = {each.said for directory in SETS.values() for each in score(directory)} | set(CAPTURED.values())
    known = {each.id for each in fingerprints() if not each.symptom}
    assert known - named == WITHOUT_EXCERPT
    assert all("`" in each.source for each in fingerprints() if each.id in WITHOUT_EXCERPT)
    assert set(FAILURES) >= WITHOUT_EXCERPT
    assert {each.id for each in fingerprints() if each.symptom} == set(SYMPTOMS)


def test_an_excerpt_is_in_one_set_and_in_the_half_of_its_address() -> None:
    indexes = {name: read_document(directory / "index.yaml").data for name, directory in SETS.items()}
    sources = [entry["source"] for index in indexes.values() for entry in index]
    assert len(sources) == len(set(sources)) > 150
    for name, bit in (("working", 0), ("reserved", 1)):
        for entry in indexes[name]:
            assert hashlib.sha256(entry["source"].encode()).digest()[-1] & 1 == bit, entry


def test_the_score_tells_right_from_wrong() -> None:
    assert said([PORT_TAKEN]) == "port-taken"
    assert said([SYMPTOMS["jit-failed"]]) == "symptom"
    assert said(["all is well"]) == "none"
    assert Excerpt("failing/x", "port-taken", "port-taken").verdict == "right"
    assert Excerpt("failing/x", "port-taken", "disk-full").verdict == "wrong"
    assert Excerpt("failing/x", "port-taken", "symptom").verdict == "symptom only"
    assert Excerpt("failing/x", "symptom", "none").verdict == "none"
    assert Excerpt("healthy/x", "none", "disk-full").verdict == "healthy, with a cause"


# A log is read as starts.


def test_only_the_last_start_counts() -> None:
    assert ids(f"{START}\n{OUT_OF_MEMORY}\n{START}\n{PORT_TAKEN}") == ["port-taken"]
    # One that has only begun says nothing yet.
    assert ids(f"{START}\n{OUT_OF_MEMORY}\n{START}") == ["out-of-memory"]


def test_what_a_ready_start_contradicts_is_no_cause_and_what_comes_later_is() -> None:
    assert ids(f"{START}\n{PORT_TAKEN}\n{READY}") == []
    assert ids(f"{START}\n{PORT_TAKEN}\n{READY}\n{OUT_OF_MEMORY}") == ["out-of-memory"]
    assert ids(f"{SGLANG}\n{PORT_TAKEN}\n[2026-11-23 20:58:02] The server is fired up and ready to roll!") == []


def test_a_stop_that_somebody_asked_for_is_no_failure() -> None:
    stop = "Nov 23 21:30:00 rig1 systemd[1]: Stopping llm@main.service - vllm-nvfp4-cu130 as main..."
    assert diagnose([START, READY, stop, *SYMPTOMS["engine-died"].splitlines()]) == Diagnosis([], [])


def test_what_others_say_about_a_start_counts_also_after_a_stop() -> None:
    stop = "Nov 23 21:30:00 rig1 systemd[1]: Stopping llm@main.service - vllm-nvfp4-cu130 as main..."
    complaint = "endpoint takes two system messages: 400: System message must be at the beginning."
    assert ids(f"{START}\n{READY}\n{stop}", complaint) == ["two-system-messages"]
    stalled = FAILURES["nccl-deadlock"]
    assert ids(f"{START}\n{stop}", stalled) == ids(stalled) == ["nccl-deadlock"]


def test_a_configuration_that_is_only_tried_is_no_cause() -> None:
    tried = f"""Runtime error during autotuning:
{OUT_OF_MEMORY}
Ignoring this choice."""
    assert ids(f"{START}\n{tried}") == []
    assert ids(f"{START}\n{tried}\n{PORT_TAKEN}") == ["port-taken"]


def test_an_xid_that_recommends_nothing_blames_no_card() -> None:
    xid = "NVRM: Xid (PCI:0000:41:00): 154, GPU recovery action changed from {} to {}"
    assert ids(xid.format("0x1 (GPU Reset Required)", "0x0 (None)")) == []
    assert ids(xid.format("0x0 (None)", "0x1 (GPU Reset Required)")) == ["gpu-off-the-bus"]


def test_a_container_that_is_removed_before_a_start_and_is_not_there_is_no_cause() -> None:
    removed = "Nov 23 20:56:31 rig1 docker[4711]: Error response from daemon: No such container: llm-main"
    assert ids(f"{removed}\n{START}") == []
    assert ids(f"{removed}\n{START}\n{PORT_TAKEN}\n{removed}") == ["port-taken"]


def test_an_image_that_is_pulled_is_not_gone() -> None:
    assert ids("Unable to find image 'vllm/vllm-openai:nightly' locally\nnightly: Pulling from vllm/vllm-openai") == []


def test_a_stall_explains_itself_by_its_last_line_only_where_it_is_the_last() -> None:
    line = "(Worker_TP0 pid=210) INFO 11-23 20:56:31 [pynccl.py:111] vLLM is using nccl==2.28.9"
    assert ids(f"{START}\n{line}") == ["nccl-deadlock"]
    assert ids(f"{START}\n{line}\n{HARMLESS['loading']}") == []
    assert ids(f"{START}\n{line}\n{PORT_TAKEN}") == ["port-taken"]


def test_colours_and_the_journals_prefix_hide_no_cause() -> None:
    line = "Nov 23 20:56:31 rig1 docker[4711]: \x1b[1;36m(EngineCore pid=20)\x1b[0;0m torch.OutOfMemoryError: CUDA out of memory."
    assert ids(line) == ["out-of-memory"]


# What is said.


def test_what_is_said_has_meaning_line_confidence_remedy_and_source_and_then_what_it_led_to() -> None:
    told = explain(FAILURES["mamba-blocks"].splitlines())
    assert told[0].startswith("Known cause: ")
    assert "(mamba-blocks)" in told[0]
    assert "exceeds available Mamba cache blocks (969)" in told[1]
    assert "certain" in told[2]
    assert "--max-num-seqs" in told[3]
    assert "49064" in told[4]
    assert told[5].startswith("It led to: ")
    assert "(engine-died)" in told[5]


def test_the_first_cause_is_the_root_and_the_kernels_word_comes_before_all() -> None:
    assert ids(f"{START}\n{OUT_OF_MEMORY}\n{PORT_TAKEN}") == ["out-of-memory", "port-taken"]
    assert ids(f"{START}\n{OUT_OF_MEMORY}\n{FAILURES['gpu-off-the-bus']}") == ["gpu-off-the-bus", "out-of-memory"]


def test_a_cause_is_certain_by_its_own_line_and_likely_by_what_stands_beside_it() -> None:
    def confidence(cause: str) -> str:
        return diagnose(FAILURES[cause].splitlines()).causes[0].confidence

    assert confidence("router-read-as-fp4") == "certain"
    assert confidence("drafter-read-as-fp4") == "likely"
    assert confidence("nccl-deadlock") == "likely"


RAISED = """  File "/usr/local/lib/python3.12/dist-packages/vllm/model_executor/layers/{}", line 88, in __init__
    raise ValueError(message)
  File "/usr/local/lib/python3.12/dist-packages/torch/nn/modules/module.py", line 1751, in _call_impl
    return forward_call(*args, **kwargs)
{}"""


def test_an_unknown_error_is_of_the_kind_that_the_code_which_raised_it_tells() -> None:
    error = "ValueError: a text that nobody has seen"
    assert ids(RAISED.format("quantization/fp8.py", error)) == ["quantization-unsupported"]
    assert ids(RAISED.format("fused_moe/layer.py", error)) == ["moe-backend-unsupported"]
    assert ids(RAISED.format("layernorm.py", error)) == []
    assert ids(error) == []
    # Frames of an earlier traceback did not raise it.
    earlier = RAISED.format("quantization/fp8.py", "ValueError: caught")
    assert ids(f"{earlier}\nTraceback (most recent call last):\n{error}") == ["quantization-unsupported"]
    told = diagnose(f"{earlier}\nTraceback (most recent call last):\n{error}".splitlines())
    assert told.causes[0].line.endswith("caught")


def test_what_names_the_failure_comes_before_what_names_only_its_kind() -> None:
    kind = RAISED.format("quantization/fp8.py", "ValueError: a text that nobody has seen")
    assert ids(f"{START}\n{kind}\n{OUT_OF_MEMORY}") == ["out-of-memory", "quantization-unsupported"]
    assert ids(RAISED.format("quantization/fp8.py", OUT_OF_MEMORY)) == ["out-of-memory"]
    refused = diagnose(["ValueError: --enable-this-thing requires that thing"]).causes[0]
    assert (refused.fingerprint.id, refused.confidence) == ("settings-refused", "likely")
    assert "settings-refused" in fatal()
    assert not re.search(fatal()["settings-refused"], refused.line)


def test_a_clients_mistake_is_no_cause_on_an_endpoint_that_serves() -> None:
    mistake = "ERROR 11-23 21:10:00 [serving.py:332] ValueError: temperature must be non-negative, got -1.0."
    assert ids(f"{START}\n{READY}\n{mistake}") == []
    assert ids(f"{START}\n{mistake}") == ["settings-refused"]
    assert ids(f"{START}\n{READY}\n{mistake}\n{SYMPTOMS['engine-died']}") == ["settings-refused"]


def test_a_remedy_speaks_the_engines_flags() -> None:
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.88 GiB."
    by_engine = {start: diagnose([start, error]).causes[0].remedy for start in (START, SGLANG, "")}
    assert "--gpu-memory-utilization" in by_engine[START]
    assert "--mem-fraction-static" not in by_engine[START]
    assert "--mem-fraction-static" in by_engine[SGLANG]
    assert "--gpu-memory-utilization" not in by_engine[SGLANG]
    assert {"vLLM:", "SGLang:"} <= set(by_engine[""].split())


def test_a_recipe_that_a_remedy_names_is_there() -> None:
    told = " ".join(text for _, text in remedies())
    named = set(re.findall(r"\b(?:vllm|sglang|glm|deepseek)-[a-z0-9.-]+\b", told))
    assert named
    assert named <= set(CATALOGUE.recipes)


def test_an_option_that_a_remedy_names_is_the_engines_and_has_that_value() -> None:
    by_age = sorted(releases(), key=lambda release: ordered(release.version))
    # The newest of each engine is the last.
    options = {release.engine: release.options for release in by_age}
    for engine, text in remedies():
        of_engines = re.sub(r"`rigup [^`]+`", "", text)
        for name, value in re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)(?:=(\w+(?:\.\w+)*))?", of_engines):
            known = [options[each] for each in ((engine,) if engine else options)]
            assert any(name in each for each in known), f"{name} in {text}"
            kinds = [each[name] for each in known if name in each]
            assert not value or any(not isinstance(kind, tuple) or value in kind for kind in kinds), f"{name}={value}"


def remedies() -> list[tuple[str | None, str]]:
    """Every remedy, and the engine that it is for."""
    found: list[tuple[str | None, str]] = []
    for known in fingerprints():
        found += [(None, known.remedy)] if isinstance(known.remedy, str) else list(known.remedy.items())
    return found


def test_every_fingerprint_has_an_id_of_its_own() -> None:
    known = [fingerprint.id for fingerprint in fingerprints()]
    assert len(known) == len(set(known))


# The lines that end the wait on a host.


def fatal() -> dict[str, str]:
    return {each["id"]: each["log"] for each in json.loads(fatal_text())}


def test_the_host_gets_the_fatal_lines_alone() -> None:
    assert re.search(fatal()["tool-parser-unknown"], FAILURES["tool-parser-unknown"].splitlines()[-1])
    # A running endpoint may say these too.
    assert not {"out-of-memory", "nccl-deadlock", "engine-died", "illegal-access"} & set(fatal())


def test_no_information_or_warning_ends_the_wait() -> None:
    logs = [
        *HARMLESS.values(),
        *((SETS[n] / e.file).read_text() for n in SETS for e in score(SETS[n]) if "healthy/" in e.file),
    ]
    for line in "\n".join(logs).splitlines():
        assert not [known for known, expression in fatal().items() if re.search(expression, line)], line
    warned = f"{API} WARNING 11-23 20:56:02 [x.py:1] {FAILURES['tool-parser-unknown'].splitlines()[-1]}"
    assert not re.search(fatal()["tool-parser-unknown"], warned)


# The command, with a file.


def test_the_command_says_by_its_exit_code_whether_it_knows_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text(FAILURES["port-taken"])
    assert main.main(["diagnose", str(log)]) == 0
    assert "(port-taken)" in capsys.readouterr().out
    log.write_text(SYMPTOMS["engine-died"])
    assert main.main(["diagnose", str(log)]) == 2
    assert "Symptom, not a cause" in capsys.readouterr().out
    log.write_text(HARMLESS["loading"])
    assert main.main(["diagnose", str(log)]) == 2
    assert "No known failure" in capsys.readouterr().out
    assert main.main(["diagnose", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
