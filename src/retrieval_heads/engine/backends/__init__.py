"""What answers: one file for each engine."""
