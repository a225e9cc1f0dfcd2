"""Networks: the gene transformer, the neighbourhood conditioner, latent U-Nets, first stages, embedders.

What needs diffusers or transformers is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.nets.config import GeneTransformerConfig, UNetConfig
    from morphogen.nets.embedders import ImageEmbedder, RepresentationTokens, TimeEmbedder, sinusoid
    from morphogen.nets.first_stages import (
        ComponentFirstStage,
        FirstStage,
        KLFirstStage,
        LatentDistribution,
        PixelFirstStage,
        VQFirstStage,
        load_first_stage,
    )
    from morphogen.nets.gene_transformer import GeneTransformer
    from morphogen.nets.heads import DetailHead
    from morphogen.nets.inference import fast_precision, optimise_for_inference
    from morphogen.nets.neighbourhood import HierarchicalConditioner, gather_neighbourhood
    from morphogen.nets.text import TextEncoder, load_text_encoder
    from morphogen.nets.unets import LatentUNet, build_unet, load_unet, widen_input

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["GeneTransformerConfig", "UNetConfig"],
        "embedders": ["ImageEmbedder", "RepresentationTokens", "TimeEmbedder", "sinusoid"],
        "first_stages": [
            "ComponentFirstStage",
            "FirstStage",
            "KLFirstStage",
            "LatentDistribution",
            "PixelFirstStage",
            "VQFirstStage",
            "load_first_stage",
        ],
        "gene_transformer": ["GeneTransformer"],
        "heads": ["DetailHead"],
        "inference": ["fast_precision", "optimise_for_inference"],
        "neighbourhood": ["HierarchicalConditioner", "gather_neighbourhood"],
        "text": ["TextEncoder", "load_text_encoder"],
        "unets": ["LatentUNet", "build_unet", "load_unet", "widen_input"],
    },
)
