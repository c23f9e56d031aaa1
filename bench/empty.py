"""A deploy that does nothing: what pyinfra costs by itself, with one connection to each host."""
