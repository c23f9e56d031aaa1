"""Facts: what is read from a host, as pyinfra facts.

A fact is one shell command and one pure function that parses its output; `reading` has what all of them share. Facts
work on a bare host. May import `render`, `plan`, `distros`, `ledger` and leaf modules.
"""
