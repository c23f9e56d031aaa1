"""Switch endpoints to other generations, and back where those do not serve. `run` is the program."""
