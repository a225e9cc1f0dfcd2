"""Simulated image pairs and label maps in the folders that real ones come in, so that every reader is exercised."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from morphogen.core.errors import InputError, OutputError
from morphogen.core.files import (
    Manifest,
    atomic_path,
    plain,
    read_json,
    writable_folder,
    write_bytes,
    write_json,
)
from morphogen.core.progress import progress
from morphogen.core.seeds import numpy_generator
from morphogen.demo.simulator.scan import Handling
from morphogen.demo.simulator.simulator import Tissue, TissueSimulator
from morphogen.demo.simulator.styles import Cell, Region

_SETTINGS = "simulation.json"
APART = 2.5  # spread of patients from different laboratories


def claim(root: Path | str, kind: str, settings: dict[str, Any]) -> tuple[Path, bool]:
    """The folder, and whether it already holds all of this simulation; another one there is an error."""
    root = writable_folder(root)
    path = root / _SETTINGS
    wanted = plain({"kind": kind, **settings})
    if path.is_file():
        if read_json(path) != wanted:
            raise OutputError(
                "this folder holds data simulated with other settings",
                where=root,
                fix="Choose another or remove it",
            )
    else:
        write_json(path, wanted)
    return root, Manifest.read(root) is not None


def _image(path: Path, pixels: NDArray, **options: Any) -> None:
    if path.exists():
        return
    buffer = io.BytesIO()
    format = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}[path.suffix]
    if format == "JPEG":
        options = {"quality": 95, "subsampling": 0, **options}
    Image.fromarray(pixels).save(buffer, format=format, **options)
    write_bytes(path, buffer.getvalue())


def write_table(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> None:
    """Rows of equal keys as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode(encoding))


def patient_names(patients: int | Sequence[str], first: int = 1) -> list[str]:
    """The names given, or as many made up; :class:`InputError` when there is none or one comes twice."""
    if isinstance(patients, int):
        patients = [f"P{k:02d}" for k in range(first, first + patients)]
    names = [str(name) for name in patients]
    if not names or len(set(names)) != len(names):
        raise InputError(
            f"{len(names)} patient names of which {len(set(names))} differ", fix="Give distinct names"
        )
    return names


def _place(size: int, *keys: int | str) -> tuple[int, int]:
    """A window somewhere in a plane of about 40 mm, in pixels."""
    x, y = numpy_generator(*keys, "place").integers(0, 80_000, 2)
    return int(x) // size * size, int(y) // size * size


def write_mist(
    root: Path | str,
    n_train: int,
    n_val: int,
    size: int = 1024,
    target: str = "er",
    *,
    seed: int = 0,
    patients: int = 4,
    val_patients: int = 2,
    style: str = "mixed",
    mpp: float = 0.4661,
    suffix: str = ".jpg",
    truth: bool = True,
) -> Path:
    """H&E and immunostained pairs in the layout of MIST and BCI: ``<root>/TrainValAB/{train,val}{A,B}``.

    A is H&E, B the immunostain; a pair shares its file name. Training and validation patients differ. With
    ``truth``, ``truth/{train,val}/<name>.npz`` holds ``dab_od_mean`` and ``dab_od`` (float16, base-10 optical
    density) and ``instances``, ``classes``, ``regions``. ``patients.csv`` says whose each pair is. A run that was
    killed continues; a folder of other settings is refused.
    """
    settings = {
        "n_train": n_train,
        "n_val": n_val,
        "size": size,
        "target": target,
        "seed": seed,
        "style": style,
    }
    settings |= {
        "patients": patients,
        "val_patients": val_patients,
        "mpp": mpp,
        "suffix": suffix,
        "truth": truth,
    }
    if suffix not in (".jpg", ".png", ".tif"):
        raise InputError(f"pairs cannot be written as {suffix!r}", fix="Choose .jpg, .png or .tif")
    root, done = claim(root, "mist", settings)
    if done:
        return root
    train = patient_names(patients)
    held_out = patient_names(val_patients, first=patients + 1)
    rows = []
    jobs = [("train", train[k % len(train)], k) for k in range(n_train)]
    jobs += [("val", held_out[k % len(held_out)], k) for k in range(n_val)]
    simulators: dict[str, TissueSimulator] = {}
    for split, patient, k in progress(jobs, what="simulating pairs"):
        name = f"{patient}_{k:05d}"
        rows.append({"name": name + suffix, "split": split, "patient": patient})
        files = [root / "TrainValAB" / f"{split}{side}" / f"{name}{suffix}" for side in "AB"]
        facts = root / "truth" / split / f"{name}.npz"
        if all(file.exists() for file in files) and (facts.exists() or not truth):
            continue
        if patient not in simulators:
            simulators[patient] = TissueSimulator(seed, patient=patient, style=style, mpp=mpp, target=target)
        tissue = simulators[patient].render(*_place(size, seed, patient, k), size, size)
        if truth:
            _write_truth(facts, tissue)
        _image(files[0], tissue.he)
        _image(files[1], tissue.ihc)
    write_table(root / "patients.csv", rows)
    Manifest.write(root, kind="mist", **settings)
    return root


def _write_truth(path: Path, tissue: Tissue) -> None:
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            dab_od_mean=tissue.dab_od_mean.astype(np.float16),
            dab_od=tissue.dab_od.astype(np.float16),
            instances=tissue.instances,
            classes=tissue.classes,
            regions=tissue.regions,
        )


def write_segmentation(
    root: Path | str,
    n: int,
    size: int = 512,
    *,
    labels: str = "regions",
    seed: int = 0,
    patients: int = 4,
    style: str = "mixed",
    mpp: float = 0.5,
    laboratories: bool = False,
) -> Path:
    """H&E images with label maps: ``images/<name>.png``, ``masks/<name>.png`` (8-bit labels, same names).

    ``labels="regions"`` gives tissue regions, ``"cells"`` nuclei by cell type. ``instances/<name>.png`` (16-bit)
    numbers the nuclei of each image from 1. ``labels.json`` names the label values, ``patients.csv`` the patients.
    ``laboratories``: patients differ more in stain and nuclear size, and in focus and compression too.
    """
    if labels not in ("regions", "cells"):
        raise InputError(f"there are no labels {labels!r}", fix="Choose regions or cells")
    settings = {
        "n": n,
        "size": size,
        "labels": labels,
        "seed": seed,
        "patients": patients,
        "style": style,
        "mpp": mpp,
    }
    if laboratories:
        settings["laboratories"] = True
    root, done = claim(root, "segmentation", settings)
    if done:
        return root
    names = patient_names(patients)
    spread = APART if laboratories else 1.0
    simulators = {
        name: TissueSimulator(seed, patient=name, style=style, mpp=mpp, spread=spread) for name in names
    }
    rows = []
    for k in progress(range(n), total=n, what="simulating images"):
        patient = names[k % len(names)]
        name = f"{patient}_{k:05d}.png"
        rows.append({"name": name, "patient": patient})
        files = [root / folder / name for folder in ("images", "masks", "instances")]
        if all(file.exists() for file in files):
            continue
        tissue = simulators[patient].render(*_place(size, seed, patient, k), size, size, ihc=False)
        numbered = np.unique(tissue.instances, return_inverse=True)[1].reshape(tissue.instances.shape)
        if tissue.instances.min() > 0:  # no background in this image
            numbered = numbered + 1
        he = Handling.of(seed, patient)(tissue.he, mpp) if laboratories else tissue.he
        _image(files[0], he)
        _image(files[1], tissue.regions if labels == "regions" else tissue.classes)
        _image(files[2], numbered.astype(np.uint16))
    enum = Region if labels == "regions" else Cell
    write_json(root / "labels.json", {str(int(each)): each.name.lower() for each in enum})
    write_table(root / "patients.csv", rows)
    Manifest.write(root, kind="segmentation", **settings)
    return root
