"""The cost of a secure sum for clients and server."""
