"""What does a trainer make of the list? Start at `formats`, or at `matching` for the rules of those who read it."""
