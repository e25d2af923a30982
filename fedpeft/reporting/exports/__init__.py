"""Exports of a finished run: a folder that transformers loads, GGUF, a model card, the hub."""
