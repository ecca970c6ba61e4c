"""What does a file say to a trainer that reads no `unfrozen_parameters`? Start at `files`."""
