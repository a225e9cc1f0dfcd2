"""Folders and slides of simulated tissue, in the layouts that users have."""
