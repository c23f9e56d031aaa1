"""The steps of a deploy and of a rebuild, one module each.

A step states the desired state of a host by calling operations of `rigup.operations`; `deploy.py` and `rebuild.py` set
the order. `preflight` plans and checks all hosts (`gather` reads them) and returns the `context` that the other steps
work from. May import all of `rigup` except `cli`.
"""
