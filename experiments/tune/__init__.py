"""A found hybrid against lora at equal bytes."""
