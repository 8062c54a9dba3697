"""Networks, heads, the bundle that a trained model is, and the engines that run one fast."""
