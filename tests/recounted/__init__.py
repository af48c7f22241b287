"""The committed results, computed again from their records by code that shares nothing with thalweg."""
