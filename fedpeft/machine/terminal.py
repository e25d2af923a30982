"""Console of all commands: it prints control characters in a visible form, so terminals do not obey them.

Class names, texts, file names and peers' messages may contain escape sequences. These could clear the screen, set the
window's title or overwrite a warning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import console
from rich.segment import Segment
from rich.text import Text

OBEYED = (
    *(code for code in range(0x20) if chr(code) not in "\t\n"),
    *range(0x7F, 0xA0),  # delete, and the control characters of eight bits
    *range(0x202A, 0x202F),  # these and the next turn the direction of what follows
    *range(0x2066, 0x206A),
)
"""Characters that a terminal obeys instead of showing them, except for line ends and tabs."""

SHOWN = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in OBEYED}


def escape_control_characters(text: str) -> str:
    r"""Return a text in which control characters are written as in \x1b."""
    return text.translate(SHOWN)


class Console(console.Console):
    """A rich console that prints control characters in a visible form."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text to print; escaped characters count when columns are measured."""
        return super().render_str(escape_control_characters(text), **options)

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of something to print; rich adds its own styles and cursor movements later."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escape_control_characters(segment.text), segment.style)
