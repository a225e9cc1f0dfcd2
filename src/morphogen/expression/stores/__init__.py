"""SpatialData stores: sections out of them, predictions back into them, cells as units."""
