"""Losses on the log-probabilities of one level, given the tree down to it."""
