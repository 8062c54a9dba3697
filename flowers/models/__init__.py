"""Networks by name, their weights, heads, and the bundle that a trained model is."""
