"""What runs inside vLLM's worker: head scores from the paged KV cache."""
