"""Judge scores that were measured elsewhere."""
