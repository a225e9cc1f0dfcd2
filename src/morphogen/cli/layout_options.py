"""What the verbs of ``morphogen layout`` share: their options, and how they read their inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from morphogen.layout.config import DataConfig
    from morphogen.layout.data import DataSplit

Inputs = Annotated[
    list[Path],
    Parameter(
        help="Folders with images/ and masks/, slides with NAME.geojson beside them, a folder of such slides, or the "
        "Oxford flowers."
    ),
]
Out = Annotated[Path, Parameter(name="--out", help="Folder of the results.")]
Unannotated = Annotated[
    list[Path] | None,
    Parameter(
        name="--unannotated",
        consume_multiple=True,
        negative=(),
        help="Images or slides that lend their style; masks are not read.",
    ),
]
AnnotatedPatients = Annotated[
    list[str] | None,
    Parameter(
        name="--annotated",
        consume_multiple=True,
        negative=(),
        help="Patients whose masks are used; the others lend their style. Default: all.",
    ),
]
Test = Annotated[
    list[str] | None,
    Parameter(
        name="--test", consume_multiple=True, negative=(), help="Patients that only the evaluation sees."
    ),
]
Patient = Annotated[
    str | None,
    Parameter(name="--patient", help="Regular expression that finds the patient in a file's name."),
]
Classes = Annotated[
    list[str] | None,
    Parameter(
        name="--classes", consume_multiple=True, negative=(), help="Classes to keep; the rest is background."
    ),
]
Crop = Annotated[int | None, Parameter(name="--crop", help="Side of the crops in pixels.")]
Mpp = Annotated[float | None, Parameter(name="--mpp", help="µm per pixel of the crops.")]
Steps = Annotated[int | None, Parameter(name="--steps", help="Updates.")]
SegmenterFolder = Annotated[
    Path | None,
    Parameter(name="--segmenter", help="Segmenter trained on real images, for the agreement filter."),
]


def data_settings(
    annotated: list[str] | None,
    test: list[str] | None,
    patient: str | None,
    classes: list[str] | None,
    crop: int | None = None,
    mpp: float | None = None,
) -> dict[str, Any]:
    """The options about the data as settings; ``None`` where they were not given."""
    values: dict[str, Any] = {"annotated": annotated, "test": test, "classes": classes}
    chosen = {f"data__{key}": list(value) if value else None for key, value in values.items()}
    return chosen | {"data__patient": patient, "data__crop": crop, "data__mpp": mpp}


def read(inputs: list[Path], data: DataConfig, unannotated: list[Path] | None = None) -> DataSplit:
    from morphogen.layout.data import read_sources

    return read_sources(inputs, data, unannotated or ())


def data_of(
    model: Any,
    annotated: list[str] | None,
    test: list[str] | None,
    patient: str | None,
    classes: list[str] | None,
) -> DataConfig:
    """How a model reads its sources: as it was trained, but for what is given."""
    from morphogen.layout.config import DataConfig

    kept = model.facts.get("data") or {}
    data = DataConfig(**kept) if kept else DataConfig(crop=model.crop, mpp=model.mpp)
    given: dict[str, Any] = {"annotated": annotated, "test": test, "classes": classes}
    changes: dict[str, Any] = {key: tuple(value) for key, value in given.items() if value is not None}
    if patient is not None:
        changes["patient"] = patient
    return data.replace(**changes)


def synthetic_sheets(folders: list[Path] | None, found: DataSplit) -> list[Any]:
    from morphogen.core.errors import InputError
    from morphogen.layout.sources.folders import image_folder

    sheets: list[Any] = []
    for folder in folders or []:
        made, classes = image_folder(folder)
        if classes is None or classes.names != found.classes.names:
            raise InputError(
                f"its classes are not those of the real images ({', '.join(found.classes.names)})",
                where=folder,
            )
        sheets += made
    return sheets
