"""Diagnosis: recognize known failures in an engine's log and explain them.

`explain` searches for the fingerprints in `fingerprints.yaml`. May import `config` and leaf modules.
"""
