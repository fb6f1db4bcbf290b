"""Predictions for new observations, and how good they are."""
