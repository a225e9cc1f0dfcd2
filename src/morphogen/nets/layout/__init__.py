"""Networks of layout- and style-conditioned synthesis (STEDM, ECCV 2024) and of segmentation.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.nets.layout.aggregators import SetTransformer, build_aggregator
    from morphogen.nets.layout.config import LayoutNetworkConfig, SegmenterConfig, StyleConfig
    from morphogen.nets.layout.encoders import StatisticsEncoder, StyleEncoder, build_style_encoder
    from morphogen.nets.layout.network import LayoutMapper, LayoutNetwork, build_layout_network
    from morphogen.nets.layout.segmenters import SmallSegmenter, build_segmenter

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "aggregators": ["SetTransformer", "build_aggregator"],
        "config": ["LayoutNetworkConfig", "SegmenterConfig", "StyleConfig"],
        "encoders": ["StatisticsEncoder", "StyleEncoder", "build_style_encoder"],
        "network": ["LayoutMapper", "LayoutNetwork", "build_layout_network"],
        "segmenters": ["SmallSegmenter", "build_segmenter"],
    },
)
