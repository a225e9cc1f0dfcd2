"""Model folders as classes in LazySlide's registry, where ``zs.tl`` and ``zs.seg`` find models by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lazyslide_models import MODEL_REGISTRY, ModelTask
from lazyslide_models import register as enlist

from morphogen.bridges.lazyslide.encoders import EncoderFeatures
from morphogen.bridges.lazyslide.genes import GeneFeatures, GeneTiles, sees_one_field
from morphogen.bridges.lazyslide.images import ClassMap, ClassShares, StainDensity, StainImages
from morphogen.bridges.lazyslide.tissue import TissueImages
from morphogen.checkpoints import load_model
from morphogen.checkpoints.folder import ModelFolder
from morphogen.core.errors import ConfigError, nearest
from morphogen.core.names import path_name
from morphogen.slides.encoders import encoder_spec, list_encoders

MARK = "from_morphogen"
"""Attribute of the classes that are ours, in a registry that others read."""


def bridged(model: Path | str, face: str = "", **options: Any) -> Any:
    """A model folder of ours (or a hub id) as an object for LazySlide's functions.

    face: which of its faces where it has several, as :func:`register` names them (``density``, ``tiles``, ``shares``);
    the first without. options: of the class, e.g. ``sampler="fast"``.
    """
    read = load_model(model)
    found = _faces(read)
    if face not in found:
        known = ", ".join(repr(name) for name in found)
        raise ConfigError(f"a model of kind '{read.kind}' has no face '{face}', only {known}", where=model)
    return found[face][0](str(model), **options)


def register(*models: Path | str, name: str | None = None) -> list[str]:
    """Give LazySlide our models by name; returns the names.

    Every model folder (or hub id) is found under ``name`` (the folder's name when it is not given; ``er`` for
    ``er/model``) and under its path. Further faces have the name and a word:

    ========== =============================== ==========================================
    kind       name                            more
    ========== =============================== ==========================================
    stain      images, ``virtual_stain``       ``NAME-density``: DAB density, a marker map
    expression genes, ``feature_prediction``   ``NAME-tiles``: from tiles (recipe stem)
    segmenter  classes, ``zs.seg.semantic``    ``NAME-shares``: area of each, ``tile_prediction``
    tissue     ``image_generation``
    ========== =============================== ==========================================

    Our own encoders (``texture``, ``lite0``) are registered too, for ``feature_extraction``. A name that is LazySlide's
    own is refused; one of ours is replaced. No weights are loaded before a model is used.
    """
    if name is not None and len(models) != 1:
        raise ConfigError(f"one name does not fit {len(models)} models", where="name")
    names = []
    for status in list_encoders():
        if status.spec.kind in ("texture", "lite0") and status.offline:
            names.append(_enlist_encoder(status.name))
    for model in models:
        read = load_model(model)
        key = path_name(name or _named(model), "name")
        for face, (cls, task, facts) in _faces(read).items():
            keys = [f"{key}-{face}"] if face else [key, str(model)]
            _enlist(
                keys, cls, task, {"folder": str(model), **facts}, f"{read.kind} model of Morphogen: {model}"
            )
            names.append(keys[0])
    return names


Face = tuple[Any, ModelTask, dict[str, Any]]


def _faces(read: ModelFolder) -> dict[str, Face]:
    """Word → class, task and what the class declares before any weights are loaded."""
    config = read.config
    if read.kind == "stain":
        stains = tuple(str(stain) for stain in config.get("stains", ()))
        return {
            "": (StainImages, ModelTask.style_transfer, {"stains": stains}),
            "density": (StainDensity, ModelTask.style_transfer, {"channel_names": stains}),
        }
    if read.kind == "expression":
        encoder = str(dict(read.fact("encoder", dict[str, Any])).get("name", ""))
        faces: dict[str, Face] = {
            "": (GeneFeatures, ModelTask.feature_prediction, {"features_model_name": encoder})
        }
        if sees_one_field(str(config.get("recipe"))):
            faces["tiles"] = (GeneTiles, ModelTask.tile_prediction, {})
        return faces
    if read.kind == "segmenter":
        classes = tuple(str(name) for name in config.get("classes", ()))
        return {
            "": (ClassMap, ModelTask.segmentation, {}),
            "shares": (ClassShares, ModelTask.tile_prediction, {"columns": classes}),
        }
    if read.kind == "tissue":
        return {"": (TissueImages, ModelTask.image_generation, {})}
    raise ConfigError(
        f"LazySlide has no task for a model of kind '{read.kind}'",
        where=read.path,
        fix="Give a model of stain, expression, tissue, or a segmenter of layout",
    )


def _named(model: Path | str) -> str:
    """``er`` for ``er/model``; the folder's name for others."""
    parts = [part for part in re.split(r"[/@]", str(model)) if part not in ("", ".", "..")]
    if len(parts) > 1 and parts[-1] == "model":
        parts.pop()
    return parts[-1]


def _enlist(keys: list[str], base: type, task: ModelTask, facts: dict[str, Any], description: str) -> None:
    for key in keys:
        there = MODEL_REGISTRY.get(key) if key in MODEL_REGISTRY else None
        if there is not None and not getattr(there, MARK, False):
            raise ConfigError(
                f"LazySlide has a model '{key}' of its own", where="register", fix="Give another name: name=…"
            )
        if there is not None:
            del MODEL_REGISTRY[key]
    made = type(
        keys[0], (base,), {**facts, MARK: True, "__doc__": base.__doc__, "__module__": base.__module__}
    )
    decorate: Callable[[type], type] = enlist(
        key=keys, task=task, description=description, license="of the model's training data and weights"
    )
    decorate(made)


def _enlist_encoder(name: str) -> str:
    spec = encoder_spec(name)
    facts = {"encoder_name": name}
    _enlist(
        [name], EncoderFeatures, ModelTask.vision, facts, spec.description or f"encoder '{name}' of Morphogen"
    )
    return name


def registered(name: str) -> Any:
    """The class of a name in LazySlide's registry; :class:`ConfigError` that suggests the nearest."""
    if name not in MODEL_REGISTRY:
        raise ConfigError(
            f"lazyslide-models has no model '{name}'.{nearest(name, MODEL_REGISTRY)}", where="--baseline"
        )
    return MODEL_REGISTRY[name]
