"""Hooks that `--hook` attaches, one per file; so far all of them come from plugins."""
