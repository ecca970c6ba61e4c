"""How is a selection written for each trainer? Start at `formats`."""
