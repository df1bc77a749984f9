"""Models: the flat vector, layers, losses, the network, and the contract of any model."""
