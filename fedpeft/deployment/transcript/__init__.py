"""What a server says to all clients alike, chained, signed and compared."""
