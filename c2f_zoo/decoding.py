"""From log-probabilities of every level to a label for every level."""
