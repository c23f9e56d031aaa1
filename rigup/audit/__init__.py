"""What the checks in `tests/audit` build on.

- `check`: the decorator that every check has.
- `subject`: a host under audit: its plan, and commands that read it.
- `expect`: compare what is expected with what is found.
- `outcome`: the result of each check, on screen, as JSON and as exit code.
- `plugin`: the pytest plugin that runs the checks.

An audit must not share code with what it checks. This package may import `ssh`, `plan`, `lock`, `distros`, `catalog`,
`config`, `errors` and `render.templates`, but nothing else of `render`, and not `preflight`, `facts`, `operations`,
`run`, `cli` or `tasks`.
"""
