#!/usr/bin/env python3
"""The lab's nvidia-modprobe: succeeds when the driver's module is loaded; lab hosts load modules only at boot."""

import argparse
import os
import sys
from pathlib import Path

MODULE_VERSION = Path(os.environ.get("LAB_ROOT", "/"), "proc/driver/nvidia/version")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="nvidia-modprobe")
    parser.add_argument("-c", "--create-nvidia-device-file", action="append")
    for short, name in (("-u", "--unified-memory"), ("-m", "--modeset"), ("-l", "--nvlink"), ("-s", "--nvswitch")):
        parser.add_argument(short, name, action="store_true")
    parser.parse_args(arguments)
    return 0 if MODULE_VERSION.exists() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
