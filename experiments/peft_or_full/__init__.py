"""The survey's claims about adapters against full fine-tuning, as three small studies."""
