"""Estimators of the evidence lower bound and of its gradient, and how noisy they are."""
