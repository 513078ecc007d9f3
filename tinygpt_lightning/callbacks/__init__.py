"""For anyone's Trainer: training in stages, exact resume, a graceful stop, safe checkpoint files."""
