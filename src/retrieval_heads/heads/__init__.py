"""Head scores: what they are, and how samples become one figure a head."""
