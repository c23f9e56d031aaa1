"""What goes wrong in the lab's mirror, said to the person at the keyboard."""

from lab.service import ServiceError


class MirrorError(ServiceError):
    """The mirror cannot be built or started; the message says why and what to do."""
