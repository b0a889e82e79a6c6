"""Needle-in-a-haystack sweeps and retrieval heads, measured on vLLM."""

__version__ = "0.1.0"
