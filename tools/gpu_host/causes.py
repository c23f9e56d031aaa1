"""Print the causes that rigup's diagnosis names for a log, as a JSON list."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rigup.diagnosis.explain import diagnose


def main() -> int:
    """Read the log that the argument names."""
    found = diagnose(Path(sys.argv[1]).read_text(errors="replace").splitlines())
    print(json.dumps([cause.fingerprint.id for cause in found.causes]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
