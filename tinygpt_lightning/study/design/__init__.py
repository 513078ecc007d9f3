"""What is asked: settings of a run, what is varied, and the cells that it makes."""
