"""Download one checkpoint and verify it. `run` is the program, `hub_worker` the process that talks to a hub."""
