"""The README says what the project does."""

import ast
import re
from pathlib import Path

from rigup.config.settings import settings_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
# What pyinfra says of a host that is back.
PYINFRAS_OWN = {"Connected"}


def test_the_readme_has_the_settings_table_of_the_schema() -> None:
    assert settings_table() in README, "put the output of `rigup settings` into README.md"


def test_the_readme_has_the_steps_in_their_order() -> None:
    statements = ast.parse((ROOT / "deploy.py").read_text()).body
    calls = [each.value for each in statements if isinstance(each, ast.Expr | ast.Assign)]
    called = [call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)]
    steps = [name for name in called if (ROOT / "tasks" / f"{name}.py").is_file()]
    table = README.partition("| step | end state |\n|---|---|\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (\w+) \|", table, re.MULTILINE) == steps
    assert steps[0] == "preflight"


def test_every_operation_in_the_readmes_transcript_is_one_of_the_deploy() -> None:
    texts = "".join(path.read_text() for path in (ROOT / "tasks").glob("*.py"))
    names = re.findall(r'\bname=f?"((?:[^"\\]|\\.)+)"', texts)
    patterns = [re.sub(r"\\\{.*?\\\}", ".+", re.escape(name)) for name in names]
    transcript = README.partition("$ pyinfra inventory/lab.py deploy.py -y\n")[2].partition("rigup: done")[0]
    shown = re.findall(r"^    \[rig1\] (\S.*)", transcript, re.MULTILINE)
    assert len(shown) > 40
    gone = [each for each in shown if not any(re.fullmatch(pattern, each) for pattern in patterns)]
    assert set(gone) <= PYINFRAS_OWN
