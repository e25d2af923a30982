"""A hybrid from a search, compared with lora at equal bytes."""
