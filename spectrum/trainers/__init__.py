"""What does a trainer make of the list? Start at `formats`; each reader's rule, Axolotl's first, is in `matching`."""
