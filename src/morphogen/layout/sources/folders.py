"""Folders of images with masks: ``images/`` and ``masks/`` of equal names, or side by side; the flowers convention."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.reading.tables import read_table as read_rows
from morphogen.layout.sources.masks import classes_in, guessed, read_mask, read_table
from morphogen.layout.sources.sheets import Classes, ImageSheet
from morphogen.slides.images import list_images, read_image

IMAGES = ("images", "imgs", "image")
MASKS = ("masks", "segs", "labels", "mask", "annotations")
_MASK_SUFFIX = re.compile(r"[_-](mask|seg|label|labels|gt|anno)$", re.IGNORECASE)
_IMAGE_SUFFIX = re.compile(r"[_-](img|image|he)$", re.IGNORECASE)


def image_folder(
    root: Path, *, pattern: str | None = None, wanted: tuple[str, ...] = (), masks: bool = True
) -> tuple[list[ImageSheet], Classes | None]:
    """The images of a folder with their masks, and what the masks' values mean.

    ``root`` holds ``images/`` and, where there are labels, ``masks/``; or images and masks beside each other, as
    ``NAME_img.jpg`` and ``NAME_mask.png``; or images alone. A mask belongs to the image of its name, with or without a
    suffix such as ``_mask``. A synthetic data set gives the images that its manifest keeps, and no other file.
    """
    images, found = _files(root)
    manifest = root / "manifest.csv"
    patients = patients_of(root, pattern, images)
    if manifest.is_file():
        rows = {Path(row.need("image")).stem: row for row in read_rows(manifest, ["image", "kept"])}
        kept = {name for name, row in rows.items() if row.text("kept") in ("1", "true", "True")}
        if lost := sorted(kept - set(images)):
            raise InputError(
                f"its manifest names {len(lost)} images that are not there, the first {lost[0]}",
                where=root,
                fix="Run synthesize again into this folder",
            )
        images = {name: path for name, path in images.items() if name in kept}
        patients |= {name: rows[name].text("style_patient") or name for name in images}
    if not masks:
        found = {}
    classes = _classes(root, found, wanted) if found else None
    sheets = []
    for name, path in images.items():
        labels: Callable[[], np.ndarray] | None = None
        mask = found.get(_key(name)) if classes is not None else None
        if classes is not None and mask is not None:
            labels = partial(_labels, mask, classes)
        pixels = partial(read_image, path)
        sheets.append(
            ImageSheet(name, patients[name], path, pixels, labels, mask=mask, balanced=manifest.is_file())
        )
    if found and not any(sheet.labelled for sheet in sheets):
        raise InputError(
            f"none of the {len(found)} masks has the name of an image",
            where=root,
            fix="Name a mask like its image, such as A1.png and A1_mask.png",
        )
    return sheets, classes


def _files(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images by name and masks by the name of their image."""
    folder = next((root / name for name in IMAGES if (root / name).is_dir()), None)
    if folder is not None:
        beside = next((root / name for name in MASKS if (root / name).is_dir()), None)
        masks = list_images(beside) if beside is not None else {}
        return list_images(folder), {_key(name): path for name, path in masks.items()}
    everything = list_images(root)
    masks = {name: path for name, path in everything.items() if _MASK_SUFFIX.search(name)}
    images = {name: path for name, path in everything.items() if name not in masks}
    return images, {_key(name): path for name, path in masks.items()}


def _key(name: str) -> str:
    return _IMAGE_SUFFIX.sub("", _MASK_SUFFIX.sub("", name))


def _labels(path: Path, classes: Classes) -> np.ndarray:
    return classes_in(read_mask(path), classes, path)


def _classes(root: Path, masks: Mapping[str, Path], wanted: tuple[str, ...]) -> Classes:
    where = next(iter(masks.values())).parent
    classes = read_table(root) or read_table(where) or guessed(masks.values())
    return classes.kept(wanted)


def patients_of(root: Path, pattern: str | None, images: Mapping[str, Path]) -> dict[str, str]:
    """Patient of every image: from ``patients.csv``, else the first group of ``pattern`` in its name, else the image
    itself."""
    path = root / "patients.csv"
    if path.is_file():
        table = read_rows(path, ["patient"], {"image": "name", "file": "name", "slide": "name"})
        named = {Path(row.need("name")).stem: row.need("patient") for row in table}
        missing = [name for name in images if name not in named and _key(name) not in named]
        if missing:
            raise InputError(f"it names no patient of {missing[0]} ({len(missing)} in all)", where=path)
        return {name: named.get(name) or named[_key(name)] for name in images}
    if pattern is None:
        return {name: _key(name) for name in images}
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise InputError(f"this is no regular expression ({error})", where="data.patient") from None
    found = {}
    for name in images:
        match = rule.search(name)
        patient = (match.group(1) if rule.groups else match.group(0)) if match else None
        if not patient:
            raise InputError(f"the pattern {pattern!r} finds no patient in '{name}'", where="data.patient")
        found[name] = patient
    return found


def flowers_folder(root: Path, split: str = "train") -> tuple[list[ImageSheet], Classes]:
    """Oxford Flowers-102: ``imgs/image_%05d.jpg`` and ``segs/segmim_%05d.jpg`` with imagelabels.mat and setid.mat.

    The background of a segmentation is the blue that its JPEG keeps: R ≤ 10, G ≤ 10, B ≥ 220. split: train, valid or
    test (the 6149 images of ``tstid``). A sheet's ``kind`` is its class, 0-based; its patient is the image.
    """
    labels = _numbers(root / "imagelabels.mat", "labels")
    key = {"train": "trnid", "valid": "valid", "test": "tstid"}[split]
    chosen = _numbers(root / "setid.mat", key)
    if len(chosen) and not 1 <= int(chosen.min()) <= int(chosen.max()) <= len(labels):
        raise InputError(
            f"{key} names images {int(chosen.min())} to {int(chosen.max())}, imagelabels.mat has {len(labels)}",
            where=root / "setid.mat",
        )
    sheets = []
    for number in sorted(chosen.tolist()):
        name = f"image_{number:05d}"
        path, mask = root / "imgs" / f"{name}.jpg", root / "segs" / f"segmim_{number:05d}.jpg"
        kind = str(int(labels[number - 1]) - 1)
        sheets.append(
            ImageSheet(name, name, path, partial(read_image, path), partial(_flower, mask), kind, mask)
        )
    return sheets, Classes(("background", "flower"), {0: 0, 1: 1})


def _numbers(path: Path, key: str) -> np.ndarray:
    """(N,) integers of a MATLAB file."""
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path)[key]).ravel().astype(np.int64)
    except Exception as error:  # what scipy meets in a damaged file has no class in common
        line = " ".join(str(error).split())[:100]
        raise InputError(f"this is no file of the flowers data set ({line})", where=path) from None


def _flower(path: Path) -> np.ndarray:
    pixels = read_image(path)
    blue = (pixels[..., 0] <= 10) & (pixels[..., 1] <= 10) & (pixels[..., 2] >= 220)
    return (~blue).astype(np.uint8)
