"""What each way to use a task's rows is worth, from guessing to full fine-tuning: `python -m experiments.ladder`."""
