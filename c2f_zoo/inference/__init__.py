"""Predictions for images, from a trained model or an exported one."""
