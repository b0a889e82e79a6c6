"""From a haystack and a question to the token ids of a prompt."""
