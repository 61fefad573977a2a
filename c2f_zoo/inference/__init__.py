"""Predictions for images, from a trained model."""

from c2f_zoo.inference.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
