"""Whether a mechanism protects as it claims, and whether a finished run gives its members away."""
