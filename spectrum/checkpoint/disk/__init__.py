"""How do weights lie on disk? Start at `weight_files`."""
