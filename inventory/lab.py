"""The hosts for pyinfra: of `inventory/lab.yaml` if it exists, else of the embedded lab; see `rigup/project.py`."""

from rigup.project import hosts

lab = hosts(__file__)
