"""The server of real clients: the federation, its settings, its ledger and its logs."""
