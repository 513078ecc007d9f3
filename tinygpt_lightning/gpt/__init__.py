"""A trained network in use: tokenizer, model, generation and checkpoint files, with PyTorch and nothing else."""
