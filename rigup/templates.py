"""Render the templates in `templates/`. The audit uses this too: the templates say what units must be.

Configuration files are text, in which nothing is escaped; in pages everything is.
"""

from __future__ import annotations

import re

import jinja2
import markupsafe

from rigup import paths
from rigup.errors import RigupError
from rigup.resources import TEMPLATES
from rigup.text import printable

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


SHOWN_CHARACTERS = 400
"""Characters of one value that a page shows: a host may say any amount."""


def _shown(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
        return printable(value)[:SHOWN_CHARACTERS]
    return value


_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=True,
    finalize=_shown,
)


def page(template: str, **values: object) -> str:
    """Return a page with these values, none of which can become markup or hide what it says.

    Raises jinja2.UndefinedError if one is missing.
    """
    return _PAGES.get_template(template).render(**values)
