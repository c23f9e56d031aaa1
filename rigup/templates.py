"""Render the templates in `templates/`. The audit uses this too: the templates say what units must be."""

from __future__ import annotations

import re

import jinja2

from rigup import paths
from rigup.errors import RigupError
from rigup.resources import TEMPLATES

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


class Lines(str):
    """Text that its renderer has quoted for the file's format, and that may take several lines."""


def _carried(value: object) -> object:
    if not isinstance(value, Lines) and _CONTROL.search(str(value)):
        raise RigupError(f"{value!r} contains a line break or a control character", "remove it where it is set")
    return value


# Shared, so that each template is compiled only once per process.
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,
    # Every line of these files is one setting: no value may end it.
    finalize=_carried,
)
_TEMPLATES.globals["paths"] = paths


def filled(template: str, **values: object) -> str:
    """Return the template with these values and `paths`.

    Raises jinja2.UndefinedError if one is missing, and RigupError if one has a line break and is not `Lines`.
    """
    return _TEMPLATES.get_template(template).render(**values)
