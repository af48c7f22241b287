"""What users hold, and what one step of it does."""
