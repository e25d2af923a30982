"""Services of the machine: hardware, memory, caches and downloads."""
