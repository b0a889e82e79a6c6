"""Masked heads: the arms, their effect and the controls."""
