"""The weight-free encoder ``texture``: named numbers of colour, texture and nuclei."""
