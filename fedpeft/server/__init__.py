"""The rounds of a federation, seen from the server."""
