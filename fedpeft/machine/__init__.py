"""What the process stands on: hardware, memory, caches and downloads."""
