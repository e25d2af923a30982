"""Everything that travels between a server and its clients, and how it is encoded."""
