"""Rendering: a plan as the files and commands of a host. Pure, except that it reads `templates/`.

`docker` and `systemd` serve an endpoint, `verify` checks it, `gateway` protects it, `peers` shares files. `export`
shows a recipe in all forms (docker, compose, systemd, `kubernetes`, shell). May import `templates`, `plan` and what
that may import. The audit must not import this package: it would check the deploy with the deploy's own code.
"""
