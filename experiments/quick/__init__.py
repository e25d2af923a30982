"""What `--quick` gains over its start and the linear probe."""
