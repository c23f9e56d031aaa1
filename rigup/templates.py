"""Render the templates in `templates/`. The audit uses this too: the templates say what units must be."""

from __future__ import annotations

import jinja2

from rigup import paths
from rigup.resources import TEMPLATES

__all__ = ["filled"]

# Shared, so that each template is compiled only once per process.
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,
)
_TEMPLATES.globals["paths"] = paths


def filled(template: str, **values: object) -> str:
    """Return the template with these values and `paths`. Raises jinja2.UndefinedError if one is missing."""
    return _TEMPLATES.get_template(template).render(**values)
