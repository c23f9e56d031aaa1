import sys

# pyinfra turns this off for its deploy files, which are no modules: ours would be compiled again at each run.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
