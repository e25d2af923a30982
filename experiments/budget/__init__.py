"""The time of a run by phase."""
