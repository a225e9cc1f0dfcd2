"""The viewer in the browser: slides, stains, genes and outlines over one another, from where the files are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.view.config import ViewConfig
    from morphogen.view.export import export_view
    from morphogen.view.serving import serve, start
    from morphogen.view.view import View, open_view

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["ViewConfig"],
        "export": ["export_view"],
        "serving": ["serve", "start"],
        "view": ["View", "open_view"],
    },
)
