"""The defaults of all settings as pyinfra group data; the inventory and `--data` override them.

`rigup/config/settings.py` defines them, each with its reason. A file `group_data/lab.py` can set any of them for all
hosts of the inventory.
"""

from rigup.project import defaults

globals().update(defaults())
