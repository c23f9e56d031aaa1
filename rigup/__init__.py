"""From bare GPU machines to a served model: everything that `deploy.py`, `rebuild.py` and the command `rigup` use.

Packages, from the bottom up: `config`, `distros`, `catalog`, `lock`, `plan`, `ssh`; `render`, `preflight`, `audit` and
`diagnosis`; `facts`, `operations`, `run`, `cli`. Each imports only those before it, and none of its neighbors on the
same line; `lint-imports` holds that. The leaf modules are `errors`, `text`, `atomic`, `paths`, `resources` and
`host_config`; `ledger` and `templates` may import these. Nothing here imports `tasks`.
"""

import sys

# pyinfra turns this off for its deploy files, which are not modules: ours would be compiled again at each run.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
