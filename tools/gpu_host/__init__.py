"""Try rigup on a machine that has a real NVIDIA GPU but no network, systemd or Docker.

On a machine with network, `python -m tools.gpu_host DIR` packs this project, vLLM and the embedded lab's checkpoint
into `DIR/part.00`, `DIR/part.01` and so on, each small enough to be carried. On the GPU host

    cat part.* | tar xz -C ROOT
    python3 ROOT/project/tools/gpu_host/host.py ROOT OUT

reads rigup's facts and runs its preflight, verifies the cards, and serves the checkpoint with real vLLM: as published
on a vLLM without its two fixes for this checkpoint, with each of the recipe's patches, with both, with speculation, and
on two cards where there are two. OUT gets `report.md`, `report.json` and the engine's logs. Exit status: 0 if all came
out as expected, 1 otherwise.

`cases` says what must come out and `pack` packs; the others run on the GPU host.
"""
