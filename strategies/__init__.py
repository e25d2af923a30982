"""Aggregation strategies, one paper per file."""

if __name__ == "strategies":
    raise ImportError("import this package as fedpeft.strategies")
