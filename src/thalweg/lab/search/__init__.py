"""Which runs a comparison is made of, and who carries them out."""
