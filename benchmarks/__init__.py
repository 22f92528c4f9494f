"""How fast: this code beside the libraries that one would otherwise use, and how its cost grows."""
