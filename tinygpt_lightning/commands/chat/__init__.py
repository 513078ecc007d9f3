"""``chat``: a trained network, asked in a terminal or through a pipe."""
