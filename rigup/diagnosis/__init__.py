"""Diagnosis: recognize known failures in an engine's log and explain them.

`log` finds the last start in a log and the lines that may tell why it failed; `explain` searches these for the
fingerprints in `fingerprints.yaml`. May import `config` and leaf modules.
"""
