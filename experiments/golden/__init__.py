"""The same results from two commits, and the numbers of small runs in fp64 that every commit must give."""
