"""The plan for a privacy budget given alone, compared with the private probe."""
