"""Tissue whose truth is known, and the demonstration that runs on it."""

from morphogen.demo.simulator import Tissue, TissueSimulator
from morphogen.demo.tissue_dab import TARGETS, DabNoise
from morphogen.demo.tissue_fields import Outline
from morphogen.demo.tissue_genes import Spots
from morphogen.demo.tissue_hest import write_hest
from morphogen.demo.tissue_slides import write_slide
from morphogen.demo.tissue_styles import STYLES, Cell, Region
from morphogen.demo.tissue_writers import write_mist, write_segmentation

__all__ = [
    "STYLES",
    "TARGETS",
    "Cell",
    "DabNoise",
    "Outline",
    "Region",
    "Spots",
    "Tissue",
    "TissueSimulator",
    "write_hest",
    "write_mist",
    "write_segmentation",
    "write_slide",
]
