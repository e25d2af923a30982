"""Every aggregation strategy on one task."""
