"""Answers with less computation: networks of adaptive depth that stop as soon as their answer is certain."""
