"""Does a list do what it says, and what should it say instead? Start at `check`."""
