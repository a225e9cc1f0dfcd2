"""Tissue whose truth is known, and the demonstration that runs on it."""

from morphogen.demo.simulator.dab import TARGETS, DabNoise
from morphogen.demo.simulator.fields import Outline
from morphogen.demo.simulator.genes import Spots
from morphogen.demo.simulator.simulator import Tissue, TissueSimulator
from morphogen.demo.simulator.styles import STYLES, Cell, Region
from morphogen.demo.writers.folders import write_mist, write_segmentation
from morphogen.demo.writers.hest import write_hest
from morphogen.demo.writers.slides import write_slide

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
