"""Scores, baselines and the page of an evaluation."""
