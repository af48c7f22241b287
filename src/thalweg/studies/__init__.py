"""The slides' experiments as recipes: one TOML file each, at lab and at paper scale; see :mod:`.recipe`."""
