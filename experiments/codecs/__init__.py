"""How many bytes each codec takes, how much error it makes, how fast it is; see README.md."""
