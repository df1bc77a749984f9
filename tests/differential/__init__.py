"""Datasets drawn at random: what dbdask's examples show of them, beside xarray and NumPy."""
