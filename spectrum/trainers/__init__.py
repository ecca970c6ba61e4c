"""What does a trainer make of the list? Start at `matching`, which has the rule of each reader, Axolotl's first."""
