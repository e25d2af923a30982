"""Rules, starts and local optimizers of 2025 and 2026 on the reviews: an exploratory comparison."""
