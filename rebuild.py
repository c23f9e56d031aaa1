"""The way back to a bare host, for `deploy.py` to walk its road anew.

`pyinfra inventory/lab.py rebuild.py --limit rig2` takes back what the deploys have added there. `--dry` shows it all
first; without `-y` it asks for the host's name before it begins. `--data remove_store=yes` removes the checkpoints too.
"""

from rigup.run.console import calm
from rigup.run.recorder import record
from tasks.rebuild import rebuild

calm()
record(then="`pyinfra inventory/lab.py deploy.py` brings it back.")

rebuild()
