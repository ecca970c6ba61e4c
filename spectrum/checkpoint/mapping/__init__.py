"""How do stored tensors become the parameters of a model, by the mapping of transformers? Start at `conversion`."""
