"""Answers of finished networks about image files."""

from raykd.prediction.predictor import Prediction, Predictor, load
from raykd.prediction.preprocess import Preprocess

__all__ = ["Prediction", "Predictor", "Preprocess", "load"]
