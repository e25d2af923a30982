"""Comparison of the results of two commits, and the fp64 numbers of small runs that every commit must reproduce."""
