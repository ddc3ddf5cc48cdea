"""Routed inference: which experts answer which rows, whom to ask for each, and what comes of the answers."""

from meshnode.inference.predict import RoutedInference
from meshnode.inference.prediction import Call, Prediction
from meshnode.inference.standings import Standings

__all__ = ["Call", "Prediction", "RoutedInference", "Standings"]
