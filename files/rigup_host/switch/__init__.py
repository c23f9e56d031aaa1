"""Switch endpoints to other generations, and back if those do not serve. `run` is the program."""
