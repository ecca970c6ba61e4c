"""Which layers train? Start at `selection`."""
