"""The client's machine: joining, its limits, its ledger, and what it accepts from a server."""
