"""Rules of precision that changes over time and from client to client, one per file."""
