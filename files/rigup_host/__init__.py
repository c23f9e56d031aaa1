"""The programs that run on a host. `rigup-host`, next to this package, starts each of them by name.

Only the standard library is available on a host. Two programs run in a virtual environment of their own: `hub-worker`
needs `huggingface_hub`, and `smoke` needs `openai`. Each program imports all its modules when it starts, so a deploy
can install another version while it runs. `rigup` is not installed on hosts: nothing here imports it.
"""
