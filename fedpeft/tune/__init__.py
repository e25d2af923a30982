"""Searches: settings that suit a federation, found by optuna from trials, each of which is a run."""
