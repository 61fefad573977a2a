"""Predictions for images, from a trained model."""

from c2f_zoo.inference.prediction import Prediction
from c2f_zoo.inference.predictor import Predictor

__all__ = ["Prediction", "Predictor"]
