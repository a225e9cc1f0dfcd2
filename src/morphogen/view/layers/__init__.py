"""What can be looked at: images in tiles, tables of spots, outlines."""
