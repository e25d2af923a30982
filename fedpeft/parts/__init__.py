"""Parts: what can be chosen by name, their settings and families, and the plugins that add further ones."""

from fedpeft.parts.part import (
    Bounds,
    Family,
    check_settings,
    format_part,
    import_class,
    list_nested_parts,
    list_overrides,
    name_of,
    setting,
    suggest_legal,
)

__all__ = [
    "Bounds",
    "Family",
    "check_settings",
    "format_part",
    "import_class",
    "list_nested_parts",
    "list_overrides",
    "name_of",
    "setting",
    "suggest_legal",
]
