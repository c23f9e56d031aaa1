"""The mount of the store's own disk, verified by systemd itself."""

import shutil
import subprocess
from pathlib import Path

import pytest

from rigup.render.systemd import mount_text, mount_unit

PATHS = {"/srv/models": "srv-models.mount", "/mnt/my-disk/a.b": r"mnt-my\x2ddisk-a.b.mount"}


@pytest.mark.parametrize("path", PATHS)
def test_the_unit_is_named_as_systemd_wants_it(path: str) -> None:
    assert mount_unit(path) == PATHS[path]
    if shutil.which("systemd-escape"):
        argv = ["systemd-escape", "--path", "--suffix=mount", path]
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip() == mount_unit(path)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / mount_unit("/srv/models")
    unit.write_text(mount_text("/srv/models", "models"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
