"""fedpeft as a Flower app, and Flower's strategies as parts."""
