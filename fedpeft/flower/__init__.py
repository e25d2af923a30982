"""fedpeft as a Flower app."""
