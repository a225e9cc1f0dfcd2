"""Scores of segmentations and of synthetic images, the baselines, the report's page."""
