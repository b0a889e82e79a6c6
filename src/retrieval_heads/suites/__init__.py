"""Suites: what a file may say, and the cells that it asks for."""
