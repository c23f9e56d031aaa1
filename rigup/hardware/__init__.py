"""What rigup knows about hardware. Pure tables and functions.

`cards` lists the GPUs by PCI device id. May import leaf modules.
"""
