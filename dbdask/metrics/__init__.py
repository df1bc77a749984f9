"""Metrics: records of a run, scores, and magnitudes of values."""
