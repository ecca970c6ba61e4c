"""How are weights stored on disk? Start at `weight_files`."""
