"""Spatial gene expression from H&E: Stem, HisDiff and Morphogen's own recipe, from sections to maps.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations
