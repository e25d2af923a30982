"""Tables of the documents that are made from the code (`python -m experiments.reference --write`)."""
