"""What the default settings make of a good start, on tasks that they were not made on."""
