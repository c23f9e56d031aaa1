"""Measure an endpoint from its own host, next to the engine. `run` is the program."""
