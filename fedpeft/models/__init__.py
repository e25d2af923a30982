"""The frozen base and what it is asked."""
