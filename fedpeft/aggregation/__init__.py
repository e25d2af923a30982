"""The mathematics of a round: from the clients' updates to the next state."""
