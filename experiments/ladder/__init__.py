"""The value of each way to use a task's data, from guessing to full fine-tuning: `python -m experiments.ladder`."""
