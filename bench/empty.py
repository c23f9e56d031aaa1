"""A deploy that does nothing: the cost of pyinfra itself, with one connection to each host."""
