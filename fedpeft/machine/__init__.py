"""Services of the machine: hardware, memory, caches, downloads and random numbers."""
