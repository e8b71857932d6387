"""Answers of finished networks about image files."""

from raykd.prediction.exported import is_exported, load_exported
from raykd.prediction.predictor import Prediction, Predictor, load
from raykd.prediction.preprocess import Preprocess

__all__ = ["Prediction", "Predictor", "Preprocess", "is_exported", "load", "load_exported"]
