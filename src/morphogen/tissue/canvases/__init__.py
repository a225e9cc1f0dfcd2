"""Canvases: images of any size from grids of embeddings."""
