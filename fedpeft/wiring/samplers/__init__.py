"""Who takes part, by what is known of clients, one rule per file."""
