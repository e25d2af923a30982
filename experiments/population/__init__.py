"""What a simulation costs as its clients grow in number."""
