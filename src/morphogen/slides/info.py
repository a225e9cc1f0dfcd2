"""What a slide file says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphogen.slides.readers import associated
from morphogen.slides.store import shape_names, table_names

if TYPE_CHECKING:
    from morphogen.slides.slide import Slide


def slide_info(slide: Slide) -> dict[str, Any]:
    """Dimensions, levels, µm/px and its source, magnification, vendor, associated images, size on disk, results."""
    return {
        "path": str(slide.path),
        "vendor": slide.vendor,
        "reader": slide.reader.name,
        "width": slide.width,
        "height": slide.height,
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "mpp_note": slide.mpp_note,
        "damage": slide.damage,
        "magnification": slide.magnification,
        "bounds": list(slide.bounds),
        "size_mm": None if slide.mpp is None else [n * slide.mpp / 1000 for n in (slide.width, slide.height)],
        "levels": [
            {"width": w, "height": h, "downsample": d, "mpp": None if slide.mpp is None else slide.mpp * d}
            for (h, w), d in zip(slide.level_shapes, slide.level_downsamples, strict=True)
        ],
        "associated_images": associated(slide.reader),
        "bytes": size_on_disk(slide.path),
        "store": str(slide.store) if slide.store.exists() else None,
        "shapes": shape_names(slide.store),
        "tables": table_names(slide.store),
    }


def size_on_disk(path: Path) -> int:
    """Bytes of the file, with the folder of the same name that MRXS and VMS slides keep beside it."""
    if path.is_dir():  # OME-Zarr
        return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    total = path.stat().st_size
    folder = path.with_suffix("")
    if path.suffix.lower() in {".mrxs", ".vms"} and folder.is_dir():
        total += sum(item.stat().st_size for item in folder.rglob("*") if item.is_file())
    return total
