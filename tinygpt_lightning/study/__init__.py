"""The experiment that answers the riddle, and a laboratory for the next question about this model."""
