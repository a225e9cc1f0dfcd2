"""Virtual staining, H&E → IHC (HistDiST): patches, folders and whole slides.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphogen.stain.data import Pair, find_pairs, pair_folders
    from morphogen.stain.evaluate import evaluate_folder
    from morphogen.stain.fitting.build import build_model
    from morphogen.stain.model import StainOutput, StainTransfer
    from morphogen.stain.pairs.crops import PairDataset
    from morphogen.stain.predict import Stained, stain_folder, stain_image
    from morphogen.stain.train import Trained, train_model
    from morphogen.stain.wholeslide import StainedSlide, stain_slide

_HOME = {
    "Pair": "data",
    "PairDataset": "pairs.crops",
    "StainOutput": "model",
    "StainTransfer": "model",
    "Stained": "predict",
    "StainedSlide": "wholeslide",
    "Trained": "train",
    "build_model": "fitting.build",
    "evaluate_folder": "evaluate",
    "find_pairs": "data",
    "pair_folders": "data",
    "stain_folder": "predict",
    "stain_image": "predict",
    "stain_slide": "wholeslide",
    "train_model": "train",
}

__all__ = [
    "Pair",
    "PairDataset",
    "StainOutput",
    "StainTransfer",
    "Stained",
    "StainedSlide",
    "Trained",
    "build_model",
    "evaluate_folder",
    "find_pairs",
    "pair_folders",
    "stain_folder",
    "stain_image",
    "stain_slide",
    "train_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'morphogen.stain' has no attribute '{name}'")
    return getattr(import_module(f"morphogen.stain.{_HOME[name]}"), name)
