"""What `import retrieval_heads` offers: stored runs, pictures, comparisons, and an engine to ask."""
