"""Fits as ArviZ's DataTrees."""
