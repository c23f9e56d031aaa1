"""The README says what the project does."""

from pathlib import Path

from rigup.settings import settings_table

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_readme_has_the_settings_table_of_the_schema() -> None:
    assert settings_table() in README, "put the output of `rigup settings` into README.md"
