"""Commands of one module each; `fedpeft NAME` runs them. `simulate`, `serve` and `join` stand beside this package."""
