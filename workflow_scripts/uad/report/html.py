"""HTML pages from jinja2 templates, all in one style; one file each, without outside resources."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).resolve().parent / "templates"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_page(template: str, /, **content: Any) -> str:
    """Render a template of ``templates/``, which extends ``page.html``.

    Args:
        template: file name, for example ``audit.html``.
        content: what the template reads; text is escaped, a missing name is an error.
    """
    return _environment().get_template(template).render(content)
