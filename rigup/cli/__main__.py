"""`python -m rigup.cli` is `rigup`."""

import sys

from rigup.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
