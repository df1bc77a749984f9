"""Data: examples as parts of a dataset, and the readers that make minibatches of them."""
