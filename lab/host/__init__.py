"""What one lab host is made of: its disk, its simulated hardware and kernel, and the processes that run it."""
