"""Speed of rounds of real clients without training."""
