"""Quality control of what lies between raw scans and networks, for a person to go through."""
