"""What a secure sum costs clients and the server."""
