"""Hooks that `--hook` attaches, one per file; today all of them come from plugins."""
