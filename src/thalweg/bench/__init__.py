"""Step time and memory of optimizers, measured side by side."""
