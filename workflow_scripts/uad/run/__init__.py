"""Planning (plan), starting on a cluster (launch), sharing out GPUs (devices) and disk (room)."""
