"""The engine process, what talks to it, and what crosses between them."""
