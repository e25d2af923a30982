"""Which parts of a run go together; what makes no sense is refused before anything is trained, with the reason."""
