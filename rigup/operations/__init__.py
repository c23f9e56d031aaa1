"""Operations: what a deploy and a rebuild do on a host, as pyinfra operations.

An operation compares facts with the desired state and yields commands only where they differ. Modules without an
underscore hold operations, one module per kind of object; `teardown` removes what deploys have added. Modules with an
underscore hold what operations share: `_host` runs commands, `_wait` waits, `_units` runs and watches systemd units,
`_apt_get` runs apt, `_rolling` limits how many hosts stop serving at a time, `_ledger` records what is added to a host,
`_notes` passes results to the run's report. May import `facts`, `diagnosis`, `render`, `plan`, `lock`, `ledger` and
leaf modules.
"""
