"""A page that shows a run while it goes on: on this machine only, and nothing can be changed from it."""
