"""The SpatialData store of a slide: read whole or not at all, written whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from morphogen.core.errors import InputError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from morphogen.slides.slide import Slide


def read_store(slide: Slide) -> SpatialData:
    """What the slide's store holds; empty when there is none.

    Raises :class:`InputError` when the store cannot be read or belongs to a slide of another size.
    """
    from spatialdata import SpatialData, read_zarr

    if not slide.store.exists():
        return SpatialData()
    try:
        data = read_zarr(slide.store)
    except Exception as error:
        raise InputError(
            f"is not a readable SpatialData store ({' '.join(str(error).split())[:160]})",
            where=slide.store,
            fix="Delete it, or keep results elsewhere with --out FOLDER",
        ) from error
    shape = data.attrs.get("slide_properties", {}).get("shape")
    if shape is not None and [int(n) for n in shape] != [slide.height, slide.width]:
        raise InputError(
            f"belongs to a slide of {shape[1]}×{shape[0]} px, not to {slide.path.name} "
            f"({slide.width}×{slide.height} px)",
            where=slide.store,
            fix="Keep the results of equally named slides apart with --out FOLDER",
        )
    return data
