"""How is a percentage chosen by looking? A page that shows what each one selects. Start at `page`."""
