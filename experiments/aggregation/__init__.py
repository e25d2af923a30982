"""Server cost of the aggregation rules, and the accuracy of their SVDs."""
