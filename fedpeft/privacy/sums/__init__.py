"""How updates are added up where nobody may see one, one way per file."""
