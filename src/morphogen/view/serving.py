"""Serving a view until it is interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from morphogen.core.errors import InputError, OutputError
from morphogen.core.files import writable_folder
from morphogen.core.running.threads import cpu_cores
from morphogen.view.cache import Cache
from morphogen.view.config import ViewConfig
from morphogen.view.server import ViewServer
from morphogen.view.site import Site
from morphogen.view.view import View


def start(
    view: View,
    config: ViewConfig | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    regions: Path | str | None = None,
) -> ViewServer:
    """Serve ``view`` in a thread; the server's ``address`` opens it, its ``stop()`` ends it.

    regions: GeoJSON file that outlines drawn on the page are read from and saved to. Raises :class:`OutputError` when
    the address cannot be used or the file of regions cannot be written.

    >>> from morphogen.view import open_view
    >>> server = start(open_view(["slide.svs", "stained/slide_ER.ome.tif"]))  # doctest: +SKIP
    >>> server.address  # doctest: +SKIP
    'http://127.0.0.1:43121/…/'
    """
    config = config or ViewConfig()
    path = Path(regions) if regions is not None else None
    if path is not None:
        if path.suffix.lower() not in (".geojson", ".json"):
            raise InputError("a file of regions ends with .geojson", where=path)
        if path.is_dir():
            raise OutputError("a folder of this name is in the way of the regions", where=path)
        writable_folder(path.parent)
    cache = Cache(int(config.cache_mb * 1e6), config.workers or cpu_cores())
    return ViewServer(Site(view, cache, regions=path), host=host, port=port).start()


def serve(
    view: View,
    config: ViewConfig | None = None,
    ready: Callable[[str], None] = lambda address: None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    regions: Path | str | None = None,
    at: str | None = None,
    browser: bool = False,
) -> None:
    """Serve ``view`` until Ctrl-C. ``ready`` is told the address; ``at``: a view to begin with, what a copied link
    holds after its ``#``; ``browser`` opens the page. Raises as :func:`start`."""
    server = start(view, config, host=host, port=port, regions=regions)
    address = server.address + (f"#{at.partition('#')[2] or at}" if at else "")
    try:
        ready(address)
        if browser:
            _open(address)
        threading.Event().wait()
    except KeyboardInterrupt as signal:
        if type(signal) is not KeyboardInterrupt:  # told to end by another signal
            raise
    finally:
        server.stop()
        view.close()


def _open(address: str) -> None:
    """The user's browser, where this machine has a screen; never one that takes over the terminal."""
    import webbrowser

    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return
    if not isinstance(found, webbrowser.GenericBrowser) or isinstance(found, webbrowser.BackgroundBrowser):
        found.open(address)
