"""Networks: the gene transformer, the neighbourhood conditioner, latent U-Nets, first stages, embedders.

What needs diffusers or transformers is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from morphogen.nets.config import GeneTransformerConfig, UNetConfig
from morphogen.nets.embedders import ImageEmbedder, RepresentationTokens, TimeEmbedder, sinusoid
from morphogen.nets.gene_transformer import GeneTransformer
from morphogen.nets.heads import DetailHead
from morphogen.nets.inference import fast_precision, optimise_for_inference
from morphogen.nets.neighbourhood import HierarchicalConditioner, gather_neighbourhood

if TYPE_CHECKING:
    from morphogen.nets.first_stages import (
        FirstStage,
        KLFirstStage,
        LatentDistribution,
        PixelFirstStage,
        VQFirstStage,
        load_first_stage,
    )
    from morphogen.nets.text import TextEncoder, load_text_encoder
    from morphogen.nets.unets import LatentUNet, build_unet, load_unet, widen_input

_LATER = {
    "FirstStage": "first_stages",
    "KLFirstStage": "first_stages",
    "LatentDistribution": "first_stages",
    "PixelFirstStage": "first_stages",
    "VQFirstStage": "first_stages",
    "load_first_stage": "first_stages",
    "TextEncoder": "text",
    "load_text_encoder": "text",
    "LatentUNet": "unets",
    "build_unet": "unets",
    "load_unet": "unets",
    "widen_input": "unets",
}

__all__ = [
    "DetailHead",
    "FirstStage",
    "GeneTransformer",
    "GeneTransformerConfig",
    "HierarchicalConditioner",
    "ImageEmbedder",
    "KLFirstStage",
    "LatentDistribution",
    "LatentUNet",
    "PixelFirstStage",
    "RepresentationTokens",
    "TextEncoder",
    "TimeEmbedder",
    "UNetConfig",
    "VQFirstStage",
    "build_unet",
    "fast_precision",
    "gather_neighbourhood",
    "load_first_stage",
    "load_text_encoder",
    "load_unet",
    "optimise_for_inference",
    "sinusoid",
    "widen_input",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
