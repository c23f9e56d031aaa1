"""Rebuild: reset a host to bare, so that `deploy.py` can start again.

`pyinfra inventory/lab.py rebuild.py --limit rig2` removes what deploys have added there. `--dry` lists it first;
without `-y` it asks for the host's name before it starts. `--data remove_store=yes` removes the checkpoints too.
"""

from rigup import commands
from rigup.run.console import shorten_output
from rigup.run.recorder import start_recording
from tasks.rebuild import rebuild

shorten_output()
start_recording(lambda hosts: f"`{commands.deploy(hosts)}` deploys it again.")

rebuild()
