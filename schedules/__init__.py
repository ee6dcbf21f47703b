"""How a pattern is tiled on a kind of machine: search spaces and untuned defaults."""
