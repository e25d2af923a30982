"""What is planned where a user names a privacy budget alone, beside the private probe."""
