"""RULER's synthetic tasks (arXiv 2404.06654), one file each, in wordings of our own."""
