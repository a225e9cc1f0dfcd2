"""Morphogen: diffusion models for computational pathology.

Rooms: :mod:`morphogen.slides`, :mod:`morphogen.diffusion`, :mod:`morphogen.nets`, :mod:`morphogen.training`,
:mod:`morphogen.checkpoints`, :mod:`morphogen.metrics`, and one per task (:mod:`morphogen.expression`,
:mod:`morphogen.stain`). Importing the package imports none of them, so ``import morphogen`` is instant.
"""

from morphogen._version import __version__

__all__ = ["__version__"]
