"""Tables and figures, and their comparison with the published values."""
