"""Local training on a client: executors, trainers, workers."""

if __name__ == "clients":
    raise ImportError("import this package as fedpeft.clients")
