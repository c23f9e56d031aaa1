"""Commands on hosts over ssh.

- `environment`: what every command starts with, whatever the login has; all others here use it.
- `pyinfra_ssh`: how both ssh connectors of pyinfra run a command in it.
- `connector`: pyinfra's ssh connector with fewer round trips; deploys use it as `@rig`.
- `client`: one connection for commands that do not deploy; `testinfra_backend` gives it to the audit's checks.
- `fact_calls`: facts by name and arguments, which is all that deploys remember.
- `connect`: the one way to connect. `login` says how (inventory, else ssh's configuration), `tcp` and `host_keys` do
  what their names say, `identities` has the keys to offer, `probe` checks that commands run.
- `batch` and `batch.pl`: many commands in one round trip; `read_ahead` and `memory`: which commands, learned from
  earlier runs. Connector, client and backend share these, and `transport` (options and errors of a connection).

May import `config` and leaf modules. Only `connector`, `pyinfra_ssh` and `fact_calls` import pyinfra, and
only `testinfra_backend` imports testinfra.
"""
