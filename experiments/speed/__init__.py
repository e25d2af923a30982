"""Speed of a round: a plain peft loop, Flower's own simulation and fedpeft, interleaved on the same batches."""
