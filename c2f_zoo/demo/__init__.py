"""A demo of a trained model in the browser."""
