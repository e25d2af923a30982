"""The cost of a simulation by its number of clients."""
