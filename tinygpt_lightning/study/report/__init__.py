"""What is told: words, tables and pictures."""
