"""Verbs: one for each algorithm of the paper."""
