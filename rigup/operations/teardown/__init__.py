"""Remove what deploys have added to a host, step by step; each step can be interrupted and repeated.

What belongs to others, or was changed since, is kept and reported (`kept`). `units`, `docker`, `packages` and `files`
remove things by kind, `finish` checks that nothing is left. The ledger is removed last, so a rebuild that was
interrupted anywhere still knows everything that a deploy has added. May import what `operations` may import.
"""
