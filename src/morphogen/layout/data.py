"""Reading and checking: sheets of every source, and which of them are annotated, lend their style, or are tested."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError, nearest
from morphogen.core.reading.listing import list_files
from morphogen.layout.config import DataConfig
from morphogen.layout.sources.folders import flowers_folder, image_folder, patients_of
from morphogen.layout.sources.sheets import Classes, Sheet
from morphogen.layout.sources.slides import SlideSheet, read_polygons, slide_classes
from morphogen.slides.images import name_of

log = logging.getLogger("morphogen.layout")

SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".tif", ".tiff", ".dcm", ".qptiff", ".btf")


@dataclass(frozen=True)
class DataSplit:
    """The images of all sources, by what each may be used for.

    annotated: sheets whose labels are used. unannotated: sheets that lend their style alone; their labels are never
    looked at. test: sheets with labels that only the evaluation sees.
    """

    classes: Classes
    annotated: tuple[Sheet, ...]
    unannotated: tuple[Sheet, ...]
    test: tuple[Sheet, ...]

    def identity(self) -> dict[str, Any]:
        """What a run is bound to."""
        return {
            "classes": list(self.classes.names),
            "annotated": [sheet.identity() for sheet in self.annotated],
            "unannotated": [sheet.identity(labels=False) for sheet in self.unannotated],
        }


def read_sources(
    sources: Sequence[Path | str], config: DataConfig, unannotated: Sequence[Path | str] = ()
) -> DataSplit:
    """All sheets of ``sources`` (folders of images with masks, slides with GeoJSON beside them, the flowers data set,
    a folder of slides) and of ``unannotated`` (the same, without labels), split by patient.

    Raises :class:`InputError` for a patient that is not there, one on two sides, or a class that no mask shows.
    """
    if not sources:
        raise InputError("no source is given", fix="Name a folder of images and masks")
    parts = [read_source(Path(source), config) for source in sources]
    tables = [classes for _, classes in parts if classes is not None]
    if not tables:
        raise InputError(
            "no source has masks or polygons",
            where=sources[0],
            fix="Put masks of the same names into masks/ beside images/, or X.geojson beside the slide X",
        )
    classes = tables[0]
    for other in tables[1:]:
        if other.names != classes.names:
            raise InputError(
                f"the sources have different classes: {', '.join(classes.names)} and {', '.join(other.names)}",
                fix="Name those to keep with --data.classes",
            )
    sheets = [sheet for found, _ in parts for sheet in found]
    extra = [
        sheet
        for source in unannotated
        for sheet in read_source(Path(source), config.replace(classes=()), labels=False)[0]
    ]
    return split(sheets, extra, classes, config)


def split(sheets: Sequence[Sheet], extra: Sequence[Sheet], classes: Classes, config: DataConfig) -> DataSplit:
    """Sheets by patient into annotated, unannotated and test."""
    patients = {sheet.patient for sheet in (*sheets, *extra)}
    for name in (*config.annotated, *config.test):
        if name not in patients:
            raise InputError(f"there is no patient '{name}'.{nearest(name, patients)}", where="split")
    both = set(config.annotated) & set(config.test)
    if both:
        raise InputError(f"patient {sorted(both)[0]} is annotated and in the test", where="split")
    test = [sheet for sheet in sheets if sheet.patient in config.test and sheet.labelled]
    rest = [sheet for sheet in sheets if sheet.patient not in config.test]
    style = [sheet for sheet in extra if sheet.patient not in config.test]
    chosen = [s for s in rest if s.labelled and (not config.annotated or s.patient in config.annotated)]
    style += [sheet for sheet in rest if sheet not in chosen]
    if config.class_train_samples is not None:
        kept = per_class(chosen, len(classes), config.class_train_samples)
        style += [sheet for sheet in chosen if sheet not in kept]
        chosen = kept
    if not chosen:
        raise InputError("no annotated image is left for training", where="split")
    return DataSplit(classes, tuple(chosen), tuple(style), tuple(test))


def per_class(sheets: Sequence[Sheet], classes: int, count: int) -> list[Sheet]:
    """The first ``count`` sheets by name that show each foreground class (or are of each kind, where they have one)."""
    order = sorted(sheets, key=lambda sheet: sheet.name)
    kinds = {getattr(sheet, "kind", "") for sheet in order} - {""}
    groups = (
        [[sheet for sheet in order if getattr(sheet, "kind", "") == kind] for kind in sorted(kinds)]
        if kinds
        else [[sheet for sheet in order if label in sheet.present] for label in range(1, classes)]
    )
    kept = {sheet.name for group in groups for sheet in group[:count]}
    return [sheet for sheet in sheets if sheet.name in kept]


def check_classes(found: DataSplit) -> list[str]:
    """Names of the foreground classes that no annotated sheet shows; they are said, and cannot be learned."""
    seen = {label for sheet in found.annotated for label in sheet.present}
    empty = [name for label, name in enumerate(found.classes.names) if label and label not in seen]
    if len(empty) == len(found.classes) - 1:
        raise InputError("no annotated image shows anything but background", where="data.classes")
    for name in empty:
        log.warning("no annotated image shows the class %s: it cannot be learned.", name)
    return empty


def read_source(source: Path, config: DataConfig, labels: bool = True) -> tuple[list[Any], Classes | None]:
    """The sheets of one source and its classes (None without labels)."""
    if not source.exists():
        raise InputError("there is no such file or folder", where=source)
    if source.is_file():
        return _slides([source], config, labels)
    if (source / "setid.mat").is_file():
        return flowers_folder(source)
    slides = [path for path in list_files(source) if _is_slide(path)]
    if slides:
        return _slides(slides, config, labels)
    return image_folder(source, pattern=config.patient, wanted=config.classes, masks=labels)


def _is_slide(path: Path) -> bool:
    """Slides, and images with polygons beside them."""
    if not path.is_file() or path.name.startswith("."):
        return False
    return (
        path.suffix.lower() in SLIDE_SUFFIXES
        or path.with_name(f"{name_of(path)}.geojson").is_file()
        and (path.suffix.lower() not in (".geojson", ".json", ".csv"))
    )


def _slides(
    paths: Sequence[Path], config: DataConfig, labels: bool
) -> tuple[list[SlideSheet], Classes | None]:
    polygons = {}
    for path in paths:
        beside = path.with_name(f"{name_of(path)}.geojson")
        if labels and beside.is_file():
            polygons[path] = tuple(read_polygons(beside))
            if not polygons[path]:
                log.warning("%s holds no polygon with a class: the slide lends its style alone.", beside.name)
                del polygons[path]
    classes = slide_classes(list(polygons.values()), config.classes) if polygons else None
    patients = _slide_patients(paths, config)
    sheets = [
        SlideSheet(
            name_of(path),
            patients[path],
            path,
            config.mpp,
            polygons.get(path, ()),
            classes.names if classes is not None else (),
            labelled=path in polygons,
        )
        for path in paths
    ]
    return sheets, classes


def _slide_patients(paths: Sequence[Path], config: DataConfig) -> dict[Path, str]:
    named = patients_of(paths[0].parent, config.patient, {name_of(path): path for path in paths})
    return {path: named[name_of(path)] for path in paths}
