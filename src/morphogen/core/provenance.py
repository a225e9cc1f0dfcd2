"""Which versions made a result."""

from __future__ import annotations

import platform
from importlib import metadata

from morphogen._version import __version__

LIBRARIES = (
    *("torch", "diffusers", "transformers", "timm", "accelerate"),
    *("lazyslide", "wsidata", "lazyslide-models", "anndata", "spatialdata", "scanpy"),
    *("numpy", "scipy", "scikit-image", "scikit-learn", "tifffile", "imagecodecs"),
)


def versions() -> dict[str, str]:
    """Versions of Morphogen, Python and the libraries whose numbers can move a result."""
    found = {"morphogen": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
