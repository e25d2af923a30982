"""Sums under masks: the server learns the sum of its clients' integers and no summand (Bonawitz, Bell et al.)."""
