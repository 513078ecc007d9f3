"""The original project's way with stages, files and vocabularies, and its mistake: the one room for all of it."""
