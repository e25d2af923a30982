"""Base models, tasks, and questions to language models."""
