"""`rigup completion`: complete commands, options, hosts and recipes in a shell."""

from __future__ import annotations

import argparse

from argcomplete.shell_integration import shellcode

from rigup.cli._parser import Commands


def register(commands: Commands) -> None:
    """Add `rigup completion`."""
    parser = commands.add_parser(
        "completion",
        help="print the script that makes a shell complete rigup's commands, hosts and recipes",
        description='For bash, add to ~/.bashrc: eval "$(rigup completion bash)". For zsh, the same with zsh in '
        "~/.zshrc, after compinit. For fish: rigup completion fish > ~/.config/fish/completions/rigup.fish",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=_completion)


def _completion(options: argparse.Namespace) -> int:
    print(shellcode(["rigup"], shell=options.shell))
    return 0
