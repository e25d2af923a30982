"""Papers behind the parts: their protocols as TOML files, their numbers next to ours, and two tables made again."""
