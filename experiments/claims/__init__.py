"""What papers claim, and what the committed studies say of it."""
