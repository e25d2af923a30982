"""FlowerTune: the template in Flower's simulation against fedpeft, with the same base, examples, rounds and steps."""
