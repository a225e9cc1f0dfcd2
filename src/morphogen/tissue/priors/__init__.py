"""Priors over grids of embeddings: canvases without a slide to take the grid from."""
