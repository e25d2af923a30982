"""Start of a project: the command that copies the starter, and the starter itself."""
