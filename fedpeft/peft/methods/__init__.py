"""Parameter-efficient fine-tuning methods, one per file."""
