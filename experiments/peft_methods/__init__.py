"""What each PEFT method costs and gives: the survey's table, measured."""
