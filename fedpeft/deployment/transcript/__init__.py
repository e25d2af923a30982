"""The server's messages to all clients alike: chained, signed and compared."""
