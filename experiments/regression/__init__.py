"""Whether a commit has become slower."""
