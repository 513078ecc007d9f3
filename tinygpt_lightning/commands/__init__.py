"""The application: commands, runs and what a person sees of them."""
