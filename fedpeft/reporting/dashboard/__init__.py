"""A page that shows a run in progress, on this machine only and read-only."""
