"""The processes of a run: what they decide together, and how the end of one is told to the others."""
