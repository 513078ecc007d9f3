"""A one-block GPT-2 that learns one sentence in stages, on PyTorch Lightning."""
