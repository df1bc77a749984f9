"""Optimisation: update rules, gradients, and L-BFGS on named vectors."""
