"""Metrics: pure functions on arrays, maps and features, one module per kind of result.

``images`` (generated against real sets), ``pairs`` (virtual staining), ``stain`` (DAB), ``seams``, ``expression``,
``probabilistic``, ``intervals``. Arguments come in one order: what is real, then what was generated. Import from the
module, or use it as ``mg.metrics.pairs``.
"""

from __future__ import annotations

import pkgutil

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=[part.name for part in pkgutil.iter_modules(__path__)]
)
