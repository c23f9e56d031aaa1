"""The lab's one exception."""


class LabError(Exception):
    """Part of the lab failed; the message says which part, why, and what to do."""
