"""The plan: what one host is meant to become, as data.

`model` defines it. `select` picks recipe, lock entries and patches of each endpoint, `build` makes the plan from them
(pure), and `host` does both with the published files read from the hub: `plan_host` is what all callers use. `peers`
are the other hosts that serve files. May import `lock`, `catalog`, `distros`, `config` and leaf modules. The audit uses
this package, so it must not import `render`.
"""
