"""A hook of mkdocs. The site contains only `docs/`, so links to other files become the paths of these files."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+?)(?:/README\.md)?\)")
"""A link to a file of the repository outside the site. It works in a checkout."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `[text](../PATH/README.md)` by "text: `PATH`", or by "`PATH`" if both are the same."""
    return OUTSIDE.sub(lambda link: f"`{link[2]}`" if link[1] == link[2] else f"{link[1]}: `{link[2]}`", markdown)
