"""Claims of papers, and what the committed studies show about them."""
