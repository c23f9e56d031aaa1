"""Benchmarks that compare rigup with the usual alternatives: `make bench` and `make bench-store`."""
