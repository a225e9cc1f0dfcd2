"""Networks: the gene transformer, the neighbourhood conditioner, latent U-Nets, first stages, embedders."""

from morphogen.nets.config import GeneTransformerConfig
from morphogen.nets.embedders import ImageEmbedder, TimeEmbedder, sinusoid
from morphogen.nets.gene_transformer import GeneTransformer
from morphogen.nets.neighbourhood import HierarchicalConditioner, gather_neighbourhood

__all__ = [
    "GeneTransformer",
    "GeneTransformerConfig",
    "HierarchicalConditioner",
    "ImageEmbedder",
    "TimeEmbedder",
    "gather_neighbourhood",
    "sinusoid",
]
