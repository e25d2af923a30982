"""Questions to language models: their prompts, the generated answers, and how correct these are."""
