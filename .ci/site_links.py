"""A hook of mkdocs: the site holds `docs/` alone, so links that leave it become the paths that they lead to."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+?)(?:/README\.md)?\)")
"""A link to a file of the repository that is no page of the site; in a checkout it leads there."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with `[text](../PATH/README.md)` as "text: `PATH`", or "`PATH`" where the text says no more."""
    return OUTSIDE.sub(lambda link: f"`{link[2]}`" if link[1] == link[2] else f"{link[1]}: `{link[2]}`", markdown)
