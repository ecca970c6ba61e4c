"""How does the command talk with its user? Arguments, questions, messages. Start at `options`."""
