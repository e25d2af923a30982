"""A finished run in the forms of others: a folder that transformers loads, GGUF, a model card, the hub."""
