"""A model at work, seen whole: one HTML file that computes in the browser."""
