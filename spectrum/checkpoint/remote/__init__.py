"""How are weights read from the Hugging Face Hub without a download? Start with `weights`."""
