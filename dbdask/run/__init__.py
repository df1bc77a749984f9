"""The machine on the client that carries any method."""
