"""The measurements of `--measure`, one per file."""
