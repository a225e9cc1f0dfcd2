"""Morphogen: diffusion models for computational pathology.

``import morphogen as mg`` is instant: a room is loaded when it is first used, as ``mg.stain`` or ``mg.slides``. Rooms:
:mod:`morphogen.slides`, :mod:`morphogen.diffusion`, :mod:`morphogen.nets`, :mod:`morphogen.training`,
:mod:`morphogen.checkpoints`, :mod:`morphogen.metrics`, :mod:`morphogen.tasks`, and one per task
(:mod:`morphogen.expression`, :mod:`morphogen.stain`, …).

>>> import morphogen as mg
>>> "stain" in dir(mg) and "open_slide" in dir(mg.slides)
True
"""

from __future__ import annotations

import pkgutil

import lazy_loader

from morphogen._version import __version__

_ROOMS = [part.name for part in pkgutil.iter_modules(__path__) if part.ispkg and part.name != "cli"]
__getattr__, _listed, __all__ = lazy_loader.attach(__name__, submodules=_ROOMS)
__all__ = [*__all__, "__version__"]


def __dir__() -> list[str]:
    return [*_listed(), "__version__"]
