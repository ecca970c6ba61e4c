"""Did training move what the list says, and nothing else? Start at `verify`."""
