"""Measures rigup beside what people would use otherwise: `make bench`, or `python -m bench --help`."""
