"""The pytest plugin: thin hooks over the library `retrieval_heads`."""
