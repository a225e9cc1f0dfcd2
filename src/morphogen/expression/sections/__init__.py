"""Sections: readers of published layouts, preparation, panels, neighbours, splits."""
