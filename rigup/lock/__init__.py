"""The lock: what the loose names in an inventory resolved to.

`lockfile` reads and writes it, `resolve` fills it from the network: `registry` (images), `hub` (checkpoints), `pypi`
(virtual environments) and `apt` (packages), all through `http`. `packages` returns what a host gets from it. May import
`catalog`, `distros`, `config` and leaf modules.
"""
