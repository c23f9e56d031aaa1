"""The defaults of all settings as pyinfra group data; the inventory and `--data` override them.

`rigup/config/settings.py` defines them, each with its reason. A file `group_data/lab.py` can set any of them for all
hosts of the inventory.
"""

from rigup.config.settings import Settings

_defaults = Settings.from_data({}).model_dump(mode="json")

# pyinfra uses the names listed here as the data.
__all__ = list(_defaults)

globals().update(_defaults)
