"""What the aggregation rules cost on the server, and how exact their SVDs are."""
