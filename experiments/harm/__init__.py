"""The effect of the default settings on a good start, on tasks that they were not chosen on."""
