"""FlowerTune: the template's way of working in Flower's simulation against ours, same base, rows, rounds and steps."""
