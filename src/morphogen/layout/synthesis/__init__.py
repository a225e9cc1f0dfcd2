"""Layouts × styles, the agreement filter, the folder of a synthetic data set."""
