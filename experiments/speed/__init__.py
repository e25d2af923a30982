"""How fast a round is: a plain peft loop, Flower's own simulation and fedpeft, interleaved on the same batches."""
