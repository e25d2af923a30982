"""Peak memory of the default run as the number of clients grows."""
