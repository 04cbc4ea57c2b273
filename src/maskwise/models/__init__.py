"""Models of transformers: families, loading, weights, attention, and names of checkpoints."""
