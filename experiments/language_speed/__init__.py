"""What the output layer, its loss and packing cost a language model's training step."""
