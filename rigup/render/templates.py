"""The templates of `templates/`, filled in."""

from __future__ import annotations

import jinja2

from rigup.resources import TEMPLATES

__all__ = ["filled"]

# One for all: each template is compiled once in a process.
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,
)


def filled(template: str, **values: object) -> str:
    """Raises jinja2.UndefinedError where the template names what is not among the values."""
    return _TEMPLATES.get_template(template).render(**values)
