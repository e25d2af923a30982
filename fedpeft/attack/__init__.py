"""Attack suite against a server's own settings: hostile servers and clients on loopback, and what each learns."""
