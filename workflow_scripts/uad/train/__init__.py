"""One training loop for every method, and its checkpoints."""
