"""Evaluation of finished language models and classifiers: their answers, compared with the right ones."""
