"""Tokenizer, model, generation and checkpoint files, with PyTorch and nothing else."""
