"""What happens around a run of pyinfra.

- `recorder`: record what a run does, as events (`event_log`); at its end, `report` builds the report from them and
  `summary` prints it.
- `console`: shorter output during the run. `interrupts`: end at once on Ctrl-C. `speed_up`: skip repeated work.
- `dry_run` and `foresee`: the dry run behind `rigup plan`.

May import `operations`, `facts` and everything below them.
"""
