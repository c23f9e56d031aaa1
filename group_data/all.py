"""The settings' defaults as pyinfra group data: what holds where neither the inventory nor `--data` says otherwise.

They are written once, with one line why for each, in `rigup/config/settings.py`; the README's table is made from there
too.
A file `group_data/lab.py` may set any of them for all hosts of the inventory.
"""

from rigup.config.settings import Settings

_defaults = Settings().model_dump(mode="json")

# pyinfra takes the names listed here as the data.
__all__ = list(_defaults)

globals().update(_defaults)
