"""What the sources print: each command's environment and arguments, as `env` would take them.

`docker run -e A=b` is written `A=b`. Left out are the model's path, and what Docker alone reads.
"""

QUOTED = {
    "vllm-nvfp4-kcramp-docker": """
        NVIDIA_VISIBLE_DEVICES=0,1,2,3 NCCL_P2P_LEVEL=4 NCCL_IB_DISABLE=1 OMP_NUM_THREADS=8 SAFETENSORS_FAST_GPU=1
        VLLM_WORKER_MULTIPROC_METHOD=spawn VLLM_LOG_MODEL_INSPECTION=1 VLLM_NVFP4_GEMM_BACKEND=cutlass
        --served-model-name X --host 0.0.0.0 --port 8000 --tensor-parallel-size 4 --gpu-memory-utilization 0.80
        --mm-encoder-tp-mode data --mm-processor-cache-type shm
        --enable-auto-tool-choice --tool-call-parser qwen3_coder --reasoning-parser qwen3
        --enable-prefix-caching --attention-backend FLASHINFER
        --attention-config '{"use_trtllm_attention": false, "disable_flashinfer_q_quantization": true}'
    """,
    "vllm-nvfp4-destroyed-mtp1": """
        NVIDIA_VISIBLE_DEVICES=0,1,2,3 NCCL_P2P_LEVEL=4 NCCL_IB_DISABLE=1 OMP_NUM_THREADS=8 SAFETENSORS_FAST_GPU=1
        VLLM_WORKER_MULTIPROC_METHOD=spawn
        --trust-remote-code --tensor-parallel-size 4 --port 8000 --host 0.0.0.0 --served-model-name Qwen3.5-397B-A17B
        --gpu-memory-utilization 0.80 --mm-encoder-tp-mode data --mm-processor-cache-type shm
        --enable-auto-tool-choice --tool-call-parser qwen3_coder --reasoning-parser qwen3 --enable-prefix-caching
        --speculative-config '{"method": "mtp", "num_speculative_tokens": 1}'
    """,
    "vllm-nvfp4-cu130-mtp2": """
        VLLM_LOG_STATS_INTERVAL=1 NCCL_P2P_LEVEL=4 SAFETENSORS_FAST_GPU=1
        --host 0.0.0.0 --port 5000 --served-model-name glm-4.7-flash --trust-remote-code
        --tensor-parallel-size 4 --gpu-memory-utilization 0.8 --max-num-batched-tokens 4092 --max-num-seqs 128
        --enable-auto-tool-choice --tool-call-parser qwen35_coder --reasoning-parser qwen3
        --mm-encoder-tp-mode data --mm-processor-cache-type shm
        --speculative-config '{"method":"qwen3_next_mtp","num_speculative_tokens":2}'
    """,
    "vllm-nvfp4-chisleu": """
        SAFETENSORS_FAST_GPU=1 VLLM_SLEEP_WHEN_IDLE=1
        --tensor-parallel-size 4 --host 0.0.0.0 --served-model-name model --port 5000 --reasoning-parser qwen3
        --enable-prefix-caching --kv-cache-dtype auto --tool-call-parser qwen3_coder --enable-auto-tool-choice
        --trust-remote-code
    """,
    "sglang-nvfp4-kcramp": """
        SGLANG_ENABLE_JIT_DEEPGEMM=0 SGLANG_SET_CPU_AFFINITY=true SGLANG_DISABLE_CUDNN_CHECK=1
        --quantization modelopt_fp4 --kv-cache-dtype fp8_e5m2 --tensor-parallel-size 4
        --context-length 262144 --reasoning-parser qwen3 --tool-call-parser qwen3_coder
        --attention-backend triton --moe-runner-backend flashinfer_cutlass
        --mem-fraction-static 0.80 --chunked-prefill-size 4096 --max-running-requests 4 --cuda-graph-max-bs 16
        --preferred-sampling-params '{"temperature":0.6,"top_p":0.95,"top_k":20,"min_p":0.0,"presence_penalty":0.0,
        "repetition_penalty":1.0}' --host 0.0.0.0 --port 8000
    """,
    "sglang-nvfp4-ixtrix": """
        CUDA_HOME=/usr/local/cuda-12.9 CUDA_VISIBLE_DEVICES=0,1,2,3
        --tensor-parallel-size 4 --quantization modelopt_fp4 --trust-remote-code
        --attention-backend triton --moe-runner-backend flashinfer_cutlass --fp4-gemm-backend flashinfer_cudnn
        --host 0.0.0.0 --port 8000 --tool-call-parser qwen3_coder --reasoning-parser qwen3
    """,
    "sglang-nvfp4-ixtrix-spec": """
        CUDA_HOME=/usr/local/cuda-12.9 CUDA_VISIBLE_DEVICES=0,1,2,3
        --tensor-parallel-size 4 --quantization modelopt_fp4 --trust-remote-code
        --attention-backend triton --moe-runner-backend flashinfer_cutlass --fp4-gemm-backend flashinfer_cudnn
        --host 0.0.0.0 --port 8000 --tool-call-parser qwen3_coder --reasoning-parser qwen3
        --speculative-eagle-topk 1 --speculative-algorithm NEXTN --speculative-num-steps 3
        --speculative-num-draft-tokens 4
    """,
    "sglang-nvfp4-festr-joninco": """
        NCCL_P2P_LEVEL=4 CUDA_VISIBLE_DEVICES=0,1,2,3 --tp 4 --host 0.0.0.0 --port 5000
        --quantization modelopt_fp4 --kv-cache-dtype fp8_e4m3 --attention-backend triton
        --moe-runner-backend flashinfer_cutlass --tool-call-parser qwen3_coder --reasoning-parser qwen3
        --speculative-algo NEXTN --speculative-num-steps 3 --speculative-eagle-topk 1
        --speculative-num-draft-tokens 4 --speculative-draft-model-quantization unquant
        --context-length 262144 --mem-fraction-static 0.90 --max-running-requests 4
        --cuda-graph-max-bs 16 --chunked-prefill-size 4096 --schedule-policy lpm --trust-remote-code
    """,
    "sglang-fp8-cyysky-8gpu": """
        --host 0.0.0.0 --port 9501 --tp-size 8 --mem-fraction-static 0.8 --context-length 262144
        --reasoning-parser qwen3 --tool-call-parser qwen3_coder --served-model-name llm_model
        --speculative-algo NEXTN --speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4
        --attention-backend triton --fp8-gemm-backend triton --moe-runner-backend triton
    """,
    "vllm-fp8-8gpu-mtp2": """
        --port 9501 --tensor-parallel-size 8 --max-model-len -1 --reasoning-parser qwen3 --enable-auto-tool-choice
        --tool-call-parser qwen3_coder --gpu-memory-utilization 0.9 --served-model-name llm_model
        --speculative-config '{"method":"qwen3_next_mtp","num_speculative_tokens":2}'
    """,
    "vllm-nvfp4-orangezed-mtp5": """
        --tensor-parallel-size 4 --gpu-memory-utilization 0.80 --max-num-batched-tokens 4092 --max-num-seqs 128
        --trust-remote-code --speculative-config '{"method":"qwen3_next_mtp","num_speculative_tokens":5}'
    """,
    "vllm-nvfp4-ixtrix-patched": """
        NVIDIA_VISIBLE_DEVICES=0,1,2,3 NVIDIA_DRIVER_CAPABILITIES=all
        LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/usr/local/nvidia/lib64:/usr/local/cuda/lib64
        NCCL_P2P_LEVEL=4 NCCL_IB_DISABLE=1 OMP_NUM_THREADS=6 SAFETENSORS_FAST_GPU=1 VLLM_WORKER_MULTIPROC_METHOD=spawn
        --host 0.0.0.0 --port 8000 --trust-remote-code --tensor-parallel-size 4
        --gpu-memory-utilization 0.90 --max-model-len 262144 --max-num-seqs 8
        --mm-encoder-tp-mode data --mm-processor-cache-type shm --media-io-kwargs '{"video": {"num_frames": -1}}'
        --enable-auto-tool-choice --tool-call-parser qwen3_coder --reasoning-parser qwen3 --enable-prefix-caching
        --speculative-config '{"method":"qwen3_next_mtp","num_speculative_tokens":2}'
        --served-model-name Qwen3.5-397B-A17B-NVFP4
    """,
    "vllm-nvfp4-orthozany": """
        NCCL_P2P_LEVEL=4 NCCL_IB_DISABLE=1 SAFETENSORS_FAST_GPU=1 OMP_NUM_THREADS=8 VLLM_WORKER_MULTIPROC_METHOD=spawn
        --served-model-name qwen3.5 --tensor-parallel-size 4 --gpu-memory-utilization 0.80
        --max-num-batched-tokens 4096 --max-num-seqs 128 --trust-remote-code --enable-prefix-caching
        --enable-auto-tool-choice --tool-call-parser qwen3_coder --reasoning-parser qwen3 --kv-cache-dtype fp8
        --speculative-config '{"method":"mtp","num_speculative_tokens":2}'
    """,
    "sglang-nvfp4-b12x": """
        NCCL_P2P_LEVEL=SYS SGLANG_ENABLE_SPEC_V2=True --served-model-name Qwen3.5
        --reasoning-parser qwen3 --tool-call-parser qwen3_coder --tensor-parallel-size 4
        --quantization modelopt_fp4 --kv-cache-dtype fp8_e4m3 --trust-remote-code
        --cuda-graph-max-bs 64 --max-running-requests 64 --mem-fraction-static 0.93 --chunked-prefill-size 16384
        --host 0.0.0.0 --port 5000 --attention-backend flashinfer
        --fp4-gemm-backend b12x --moe-runner-backend b12x --enable-pcie-oneshot-allreduce
        --enable-metrics --sleep-on-idle
        --speculative-algo NEXTN --speculative-num-steps 4 --speculative-eagle-topk 1 --speculative-num-draft-tokens 6
    """,
    "vllm-nvfp4-voipmonitor-mtp2": """
        NCCL_P2P_LEVEL=SYS --served-model-name Qwen3.5 --tensor-parallel-size 4 --trust-remote-code
        --gpu-memory-utilization 0.9 --max-num-batched-tokens 8192 --max-num-seqs 128
        --enable-prefix-caching --enable-chunked-prefill --enable-auto-tool-choice --tool-call-parser qwen3_coder
        --reasoning-parser qwen3 --host 0.0.0.0 --port 5000
        --speculative-config '{"method":"mtp","num_speculative_tokens":2}'
    """,
    "sglang-awq-b12x-cu132": """
        NCCL_P2P_LEVEL=SYS NCCL_IB_DISABLE=1 SAFETENSORS_FAST_GPU=1 OMP_NUM_THREADS=8 SGLANG_ENABLE_SPEC_V2=true
        --served-model-name Qwen3.5 --reasoning-parser qwen3 --tool-call-parser qwen3_coder --tensor-parallel-size 4
        --kv-cache-dtype fp8_e4m3 --trust-remote-code --cuda-graph-max-bs 64 --max-running-requests 64
        --mem-fraction-static 0.90 --chunked-prefill-size 16384 --host 0.0.0.0 --port 5000
        --prefill-attention-backend flashinfer --decode-attention-backend b12x --page-size 64
        --enable-pcie-oneshot-allreduce --pcie-oneshot-allreduce-max-size auto --enable-metrics --sleep-on-idle
        --mamba-scheduler-strategy extra_buffer --speculative-algorithm EAGLE --speculative-num-steps 4
        --speculative-eagle-topk 1 --speculative-num-draft-tokens 5 --schedule-policy lpm --context-length 262144
    """,
    "glm-5.3-flash-mtp3": """
        PROFILE=glm53-flash HARDWARE_PROFILE=rtx-pro-6000-pcie TP=4 PORT=8000 --mode mtp --draft-tokens 3
    """,
    "glm-5.3-flash-dflash2": """
        PROFILE=glm53-flash HARDWARE_PROFILE=rtx-pro-6000-pcie TP=4 PORT=8000 --mode dflash2 --draft-tokens 7
    """,
    "glm-5.3-flash-spark-2gpu": "PRESET=glm53-spark-tp2 PORT=8000",
    "deepseek-v4-flash-vision-2gpu": "PROFILE=ds4-vision HARDWARE_PROFILE=rtx-pro-6000-pcie TP=2 PORT=8000",
    "deepseek-v4-flash-2gpu": "PROFILE=ds4-flash HARDWARE_PROFILE=rtx-pro-6000-pcie TP=2 PORT=8000",
    "deepseek-v4.1-flash": "PROFILE=ds41-flash HARDWARE_PROFILE=rtx-pro-6000-pcie TP=4 PORT=8000",
    "qwen3.8-flash-next": "PROFILE=qwen38-flash-next HARDWARE_PROFILE=rtx-pro-6000-pcie TP=1 PORT=8000",
    "qwen3.8-flash-next-2gpu": "PROFILE=qwen38-flash-next HARDWARE_PROFILE=rtx-pro-6000-pcie TP=2 PORT=8000",
    "qwen3.8-flash-next-sglang": """
        PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True SGLANG_OPT_MAMBA_SKIP_DECODE_LOCK=1
        --tp 1 --fp4-gemm-backend flashinfer_cutlass --moe-runner-backend flashinfer_cutlass --page-size 64
        --mamba-track-interval 64 --chunked-prefill-size 4096 --context-length 262144
        --mamba-radix-cache-strategy extra_buffer_lazy --max-running-requests 64 --max-mamba-cache-size 192
        --mamba-ssm-dtype bfloat16 --reasoning-parser qwen3 --mem-fraction-static 0.93 --host 0.0.0.0 --port 30000
    """,
    "qwen3.8-flash-next-sglang-mtp3": """
        PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True SGLANG_OPT_MAMBA_SKIP_DECODE_LOCK=1
        --tp 1 --fp4-gemm-backend flashinfer_cutlass --moe-runner-backend flashinfer_cutlass --page-size 64
        --mamba-track-interval 64 --chunked-prefill-size 4096 --context-length 262144
        --speculative-algorithm NEXTN --speculative-num-steps 3 --speculative-eagle-topk 1
        --speculative-num-draft-tokens 4 --mamba-radix-cache-strategy extra_buffer_lazy --max-running-requests 16
        --max-mamba-cache-size 48 --mamba-ssm-dtype bfloat16 --reasoning-parser qwen3 --mem-fraction-static 0.96
        --host 0.0.0.0 --port 30000
    """,
    "vllm-carve-yarn-900k": """
        NCCL_P2P_LEVEL=SYS NCCL_IB_DISABLE=1 VLLM_WORKER_MULTIPROC_METHOD=spawn SAFETENSORS_FAST_GPU=1 OMP_NUM_THREADS=8
        VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 --served-model-name qwen3.5-carve --tensor-parallel-size 4
        --max-model-len 921600 --max-num-seqs 16 --gpu-memory-utilization 0.9 --trust-remote-code
        --enable-prefix-caching --enable-auto-tool-choice --tool-call-parser qwen3_coder --reasoning-parser qwen3
        --kv-cache-dtype fp8 --hf-overrides '{"text_config": {"rope_parameters": {"mrope_interleaved": true,
        "mrope_section": [11, 11, 10], "rope_type": "yarn", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
        "factor": 4.0, "original_max_position_embeddings": 262144}}}'
    """,
}
"""By the recipe that the command became."""

NEAREST = {
    "vllm-fp8-6gpu": """
        --tensor-parallel-size 2 --pipeline-parallel-size 3 --max-model-len 98304 --gpu-memory-utilization 0.87
        --kv-cache-dtype fp8 --reasoning-parser qwen3 --enable-prefix-caching --enable-chunked-prefill
        --enable-auto-tool-choice --tool-call-parser qwen3_xml --max-num-batched-tokens 32768 --max-num-seqs 128
        --default-chat-template-kwargs '{"enable_thinking": false}'
    """,
    "sglang-nvfp4-festr-full": """
        SGLANG_DISABLE_DEEP_GEMM=1 NCCL_IB_DISABLE=1 NCCL_P2P_LEVEL=PHB OMP_NUM_THREADS=8 SAFETENSORS_FAST_GPU=1
        --tp-size 4 --host 0.0.0.0 --port 8000 --trust-remote-code --mem-fraction-static 0.85
        --quantization modelopt_fp4 --attention-backend triton --moe-runner-backend flashinfer_cutlass
        --fp4-gemm-backend flashinfer_cudnn --context-length 262144
        --reasoning-parser qwen3 --tool-call-parser qwen3_coder
    """,
    **{
        name: QUOTED[source]
        for source, names in {
            "vllm-nvfp4-cu130-mtp2": ("vllm-nvfp4-cu130", "vllm-nvfp4-cu130-mtp1", "vllm-nvfp4-cu130-dcp2"),
            "vllm-nvfp4-destroyed-mtp1": ("vllm-nvfp4-destroyed-mtp2", "vllm-nvfp4-destroyed-mtp5"),
            "sglang-nvfp4-kcramp": ("sglang-nvfp4-kcramp-nextn",),
            "sglang-nvfp4-b12x": ("sglang-nvfp4-b12x-nomtp",),
            "vllm-nvfp4-voipmonitor-mtp2": ("vllm-nvfp4-voipmonitor",),
        }.items()
        for name in names
    },
}
"""The command that an assembled recipe started from."""
