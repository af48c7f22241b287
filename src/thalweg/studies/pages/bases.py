"""The bases in front of which measurements put E."""

BASES = ("gd", "momentum", "adam", "adamw", "lamb")
BETA2 = 0.9
"""The momentum of every base that has one, as an average."""
MOMENTUM = {base: 0.0 if base == "gd" else BETA2 for base in BASES}
