"""The `rigup` command line: everything except deploying, which is pyinfra's job.

One module per command, of the command's name. Each has `register(commands)`, which adds its parser and sets `run`, a
function from the parsed options to the exit code. `main` lists the modules. Modules with an underscore are shared by
several commands. This is the top layer: it may import everything else in rigup, and nothing imports it.
"""
