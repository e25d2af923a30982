"""What both ends of a connection go by."""

BYTES_PER_PARAMETER = 16
"""A report's payloads may have this many bytes per trainable parameter, and a megabyte."""
