"""Pretrained base models that need no hub, one per file; `--model NAME` picks one."""
