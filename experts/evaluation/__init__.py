"""Measuring continual learning: metrics and the baselines they are quoted against."""
