"""Metrics that know the tree."""
