"""What a model takes of the GPUs' memory, computed from the files of its checkpoint. Pure functions.

`shape` reads `config.json` and the index of the weights: which layers keep what. `memory` computes what that takes on
each GPU, and how many sequences fit. May import leaf modules.
"""
