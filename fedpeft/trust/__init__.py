"""Whether a finished model can be trusted: what is asked of rows, and what the answers, sums over rows, say."""
