"""The command line: one file a command, runs, and everything a person sees of them."""
