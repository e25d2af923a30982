"""RBLA's rule on Fashion-MNIST, next to zero padding (arXiv 2408.08699)."""
