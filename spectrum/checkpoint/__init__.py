"""How are weights found and read? Start at `reader`."""
