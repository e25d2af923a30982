"""Cost and accuracy of each PEFT method."""
