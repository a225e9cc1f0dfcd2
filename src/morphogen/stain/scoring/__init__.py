"""Scores, baselines, pictures and the page of an evaluation."""
