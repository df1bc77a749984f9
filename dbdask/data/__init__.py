"""Examples: what a dataset offers to training, and how it is read."""
