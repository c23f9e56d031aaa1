"""The lab: simulated GPU hosts, and everything they download from, on one machine.

`python -m lab up` boots it, `make lab` also deploys to it. README.md says where it differs from a real host.

The lab as a whole:

- `world` brings everything up and down and writes the inventory; `__main__` is the command line, `tour` is `make lab`
- `machine` is a lab host: create, boot, reboot, cut the power, run commands; `network` is the bridge between the hosts
- `service` runs background processes; `state` owns the state directory and its keys; `settings` has paths and addresses

What a host is made of, and what the machine below does for it: `host/`

- `rootfs` builds the disk of a bare Debian (`guest/` has the files placed on it); `supervisor` boots it with nspawn
- `hardware` describes the simulated GPUs; `kernel` decides what would be loaded at boot, `kernel_view` writes what the
  host then sees in /proc and /sys

What hosts download from:

- `mirror/`: apt repositories of NVIDIA and Docker, Debian and PyPI passed through; `standins/` are the programs in them
- `hub/`: the Hugging Face hub, with `checkpoint/`, the model in miniature
- `registry/`: container images of the engines: `engine/` (the real vLLM on a CPU), `sglang/` and `standin_engine/`
"""
