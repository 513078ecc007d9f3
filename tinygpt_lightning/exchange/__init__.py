"""Trained networks in the files of other projects: Hugging Face's, and the original's."""
