"""Crops, style images and augmentation, drawn by item."""
