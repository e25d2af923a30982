"""Questions to language models: how they are put, how answers are made, and how right they are."""
