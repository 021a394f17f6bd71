"""Pages and texts from the jinja2 templates of ``templates/``; pages load nothing from outside."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).resolve().parent / "templates"


@cache
def environment() -> Environment:
    """The templates; text becomes HTML only in those that end with ``.html``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: (name or "").endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_page(template: str, /, **content: Any) -> str:
    """Render a template of ``templates/``; a name that it misses is an error."""
    return environment().get_template(template).render(content)


def paragraphs(template: str, /, **content: Any) -> dict[str, list[str]]:
    """The blocks of a text template by name, each as a list of its paragraphs."""
    text = environment().get_template(template)
    context = text.new_context(content)
    found = {}
    for name, block in text.blocks.items():
        parts = re.split(r"\n\s*\n", "".join(block(context)))
        found[name] = [line for part in parts if (line := re.sub(r"[ \n]+", " ", part).strip(" "))]
    return found
