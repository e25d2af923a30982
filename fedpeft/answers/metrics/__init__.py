"""How an answer is compared with the right ones, one way per file."""
