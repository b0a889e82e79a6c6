"""Needles that share no word with their question: sets of them, and the task that asks them."""
