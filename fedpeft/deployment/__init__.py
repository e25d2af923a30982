"""A federation of real clients: the server's side, the client's side and the wire between them."""
