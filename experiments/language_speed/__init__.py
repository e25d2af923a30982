"""The cost of the output layer, its loss and packing in a language model's training step."""
