"""Studies: many runs of a grid, kept as results, compared, and shown on a page."""
