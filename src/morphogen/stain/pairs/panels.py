"""Folders of DeepLIIF: immunostain and multiplex fluorescence of one section, as six panels.

Three forms are read (Ghahremani et al., Nature Machine Intelligence 4, 2022, and the documentation of DeepLIIF):

* ``ROOT/{train,val,test}/NAME.png``: the panels side by side, in the order of :data:`PANELS`;
* ``NAME_IHC.png``, ``NAME_DAPI.png`` …: loose, what ``deepliif prepare-training-data`` stitches;
* ``NAME/IHC.png``, ``NAME/DAPI.png`` …: a folder each; both loose forms in ``ROOT/SPLIT`` or in ``ROOT``.

The immunostain stands where other pairs have their H&E, the fluorescence panels are named channels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from morphogen.core.errors import InputError, nearest
from morphogen.core.files import Manifest, writable_folder, write_text
from morphogen.core.fingerprints import fingerprint
from morphogen.core.jobs import RECORD, Job
from morphogen.core.progress import progress
from morphogen.core.reading.listing import list_files, list_folders
from morphogen.core.writing.locks import locks_folder
from morphogen.slides.formats.channels import save_channels
from morphogen.slides.images import IMAGE_SUFFIXES, image_size, name_of
from morphogen.stain.data import splits_of
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.files import STATED, read_image
from morphogen.tasks.folders import save_png

PANELS = ("IHC", "Hematoxylin", "DAPI", "Lap2", "Marker", "Seg")
SHOWN = ("DAPI", "Lap2", "Marker")  # measured light; the others are computed from it or from the immunostain
_COLOURS = {"DAPI": "#0000ff", "Lap2": "#00ff00", "Marker": "#ff0000"}


@dataclass(frozen=True)
class PanelSet:
    """The panels of one section: a file each, or one file that holds them side by side."""

    name: str
    files: dict[str, Path]

    @property
    def stitched(self) -> bool:
        """Whether one file holds all."""
        return len(set(self.files.values())) == 1

    def read(self, wanted: Sequence[str]) -> list[np.ndarray]:
        """The panels of these names, (H, W, 3) uint8 each; :class:`InputError` where sizes differ."""
        if self.stitched:
            image = read_image(self.files["IHC"])
            side = image.shape[1] // len(PANELS)
            return [image[:, side * PANELS.index(each) : side * (PANELS.index(each) + 1)] for each in wanted]
        images = [read_image(self.files[each]) for each in wanted]
        for name, image in zip(wanted, images, strict=True):
            if image.shape != images[0].shape:
                raise InputError(
                    f"the panel {name} is {image.shape[1]} × {image.shape[0]} px, {wanted[0]} "
                    f"{images[0].shape[1]} × {images[0].shape[0]}",
                    where=self.files[name],
                )
        return images


def find_panels(root: Path | str, split: str) -> list[PanelSet]:
    """The sets of panels of a split, empty where the folder holds none.

    :class:`InputError` where some images of a folder are six panels wide and others are not.
    """
    root = Path(root)
    for folder in (root / split, root):
        if not folder.is_dir():
            continue
        loose = _loose(folder)
        if loose:
            return loose
        files = list_files(folder, suffixes=IMAGE_SUFFIXES)
        wide = {path: _six_wide(path) for path in files}
        if any(wide.values()):
            narrow = [path.name for path, six in wide.items() if not six]
            if narrow:
                raise InputError(
                    f"{len(narrow)} of {len(files)} images are not six square panels wide, the first is {narrow[0]}",
                    where=folder,
                    fix=f"Side by side lie {', '.join(PANELS)}",
                )
            return [PanelSet(name_of(path), dict.fromkeys(PANELS, path)) for path in files]
    return []


def _six_wide(path: Path) -> bool:
    height, width = image_size(path)
    return width == len(PANELS) * height


def _loose(folder: Path) -> list[PanelSet]:
    """Sets of loose files, those with an immunostain and a panel of fluorescence at least."""
    found: dict[str, dict[str, Path]] = {}
    for path in list_files(folder, suffixes=IMAGE_SUFFIXES):
        name, _, panel = name_of(path).rpartition("_")
        if panel in PANELS and name:
            found.setdefault(name, {})[panel] = path
    for each in list_folders(folder):
        panels = {
            name_of(path): path
            for path in list_files(each, suffixes=IMAGE_SUFFIXES)
            if name_of(path) in PANELS
        }
        if panels:
            found.setdefault(each.name, {}).update(panels)
    whole = {name: files for name, files in found.items() if "IHC" in files and files.keys() & set(SHOWN)}
    if not whole:
        return []
    for name, files in found.items():
        missing = [panel for panel in ("IHC", *SHOWN) if panel not in files]
        if missing:
            raise InputError(f"'{name}' has no panel {', '.join(missing)}", where=folder, fix="Add its image")
    return [PanelSet(name, files) for name, files in sorted(whole.items())]


def as_pairs(data: Path | str, split: str, out: Path | str, target: TargetConfig | None = None) -> Path:
    """The pair table that the panels of ``data`` are cut into, ``out/pairs.csv``; ``data`` itself where it holds none.

    ``target`` may name some of :data:`SHOWN` as channels; all are taken otherwise.
    """
    data = Path(data)
    sets = find_panels(data, split) if data.is_dir() and split not in splits_of(data) else []
    return cut_panels(sets, split, out, target) if sets else data


@locks_folder()
def cut_panels(
    sets: Sequence[PanelSet], split: str, out: Path | str, target: TargetConfig | None = None
) -> Path:
    """Write the immunostains (PNG) and the channels of fluorescence (OME-TIFF) of ``sets`` into ``out``, with
    ``pairs.csv`` and ``target.yaml``; returns the table. A finished folder is used as it is, a run that was killed goes
    on.

    A channel is the brightest of a panel's red, green and blue: DAPI and Marker are grey, Lap2 is green.
    """
    target = target if target is not None and not target.colour else TargetConfig(channels=SHOWN)
    for name in target.channels:
        if name not in PANELS[1:]:
            raise InputError(
                f"there is no panel '{name}' in these images.{nearest(name, PANELS[1:])}",
                where="target.channels",
                fix=f"Use some of {', '.join(PANELS[1:])}",
            )
    if not target.colours:
        target = target.replace(colours=tuple(_COLOURS.get(name, "#ffffff") for name in target.channels))
    out = writable_folder(out)
    files = {each.name: sorted({str(fingerprint(path)) for path in each.files.values()}) for each in sets}
    job = Job({"panels": files, "channels": list(target.channels), "split": split})
    table, manifest = out / "pairs.csv", Manifest.read(out)
    if manifest is not None and manifest.get("mark") == job.mark:
        return table
    goes_on = job.begin(out / RECORD, "pairs cut from panels")
    text = io.StringIO()
    rows = csv.DictWriter(text, ("name", "he", "ihc", "stain", "split"), lineterminator="\n")
    rows.writeheader()
    for each in progress(sets, what="cutting panels"):
        he, channels = Path("he") / f"{each.name}.png", Path("target") / f"{each.name}.ome.tif"
        if not (goes_on and (out / he).is_file() and (out / channels).is_file()):
            stain, *lights = each.read(["IHC", *target.channels])
            save_png(out / he, np.ascontiguousarray(stain))
            writable_folder((out / channels).parent)
            save_channels(
                out / channels, np.stack([light.max(axis=2) for light in lights], axis=-1), target.channels
            )
        rows.writerow(
            {"name": each.name, "he": str(he), "ihc": str(channels), "stain": "multiplex", "split": split}
        )
    target.save(out / STATED)
    write_text(table, text.getvalue())
    Manifest.write(out, kind="pairs cut from panels", mark=job.mark, pairs=len(sets))
    return table
