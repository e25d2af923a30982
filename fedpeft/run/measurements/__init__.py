"""What is measured of a run, one per file."""
