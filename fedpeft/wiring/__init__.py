"""From settings to the parts of a run: what a run is, and which parts do not fit together."""
