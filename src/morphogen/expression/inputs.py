"""What a user names to be predicted: prepared sections, slides, folders and lists of them; and the loop over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anndata as ad

from morphogen.core.errors import InputError, MorphogenError
from morphogen.core.files import writable_folder
from morphogen.core.reading.listing import list_files
from morphogen.expression.config import PredictConfig
from morphogen.expression.model import ExpressionModel
from morphogen.expression.sections.grid import slide_section, write_geojson
from morphogen.expression.sections.prepare import load_section
from morphogen.slides.batch import collect
from morphogen.tasks.sources import concerns_all

PREPARED = ".h5ad"


@dataclass(frozen=True)
class SectionInput:
    """A prepared section or a slide, with its µm/px where the user said it."""

    path: Path
    mpp: float | None = None

    @property
    def prepared(self) -> bool:
        """Whether it is embedded already."""
        return self.path.suffix.lower() == PREPARED


@dataclass(frozen=True)
class Predicted:
    """What became of one input; ``error`` says why there is no result."""

    source: Path
    out: Path | None = None
    geojson: Path | None = None
    spots: int = 0
    genes: int = 0
    samples: int = 0
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """A few words for the terminal."""
        if self.error:
            return [f"failed: {self.error}"]
        lines = [
            f"{self.spots} spots × {self.genes} genes, {self.samples} samples",
            f"{self.source} → {self.out}",
        ]
        return lines if self.geojson is None else [*lines, f"QuPath: {self.geojson}"]


def section_inputs(inputs: Iterable[Path | str], *, mpp: float | None = None) -> list[SectionInput]:
    """Prepared sections and slides of what is named, in order, each once.

    A folder gives its .h5ad files where it holds any, else its slides; lists are read as by
    :func:`morphogen.slides.batch.collect`. :class:`InputError` for what is not there.
    """
    found: dict[Path, SectionInput] = {}
    for item in map(Path, inputs):
        if not item.exists():
            raise InputError("there is no such file or folder", where=item)
        own = list_files(item, suffixes=(PREPARED,))
        if item.suffix.lower() == PREPARED:
            own = [item]
        if own:
            found |= {path: SectionInput(path) for path in own}
        else:
            found |= {
                Path(job.path): SectionInput(Path(job.path), job.mpp) for job in collect([item], mpp=mpp)
            }
    return list(found.values())


def predict_inputs(
    model: ExpressionModel,
    inputs: Iterable[Path | str],
    out: Path | str,
    config: PredictConfig,
    *,
    mpp: float | None = None,
    weights: str | None = None,
    geojson: Path | str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[Predicted]:
    """Predict everything that is named, an outcome as each is finished.

    out, geojson: files for a single input; folders for several, in which a result has the name of its input. One bad
    input among several is an outcome with its error, and the others go on; a single one raises.
    """
    named = section_inputs(inputs, mpp=mpp)
    out = Path(out)
    alone = len(named) == 1 and out.suffix.lower() == PREPARED
    stems = [each.path.stem for each in named]
    twice = next((each.path for each in named if stems.count(each.path.stem) > 1), None)
    if twice is not None:
        raise InputError("two inputs have this name, and so would their results", where=twice)
    if not alone and out.suffix.lower() == PREPARED:
        raise InputError(f"{len(named)} inputs do not fit into one file", where=out, fix="Give a folder")
    for each in named:
        try:
            section = _section(model, each, config, weights, device, precision)
            place = out if alone else writable_folder(out) / f"{each.path.stem}{PREPARED}"
            result = model(section, config, device=device, precision=precision, out=place)
            drawn = _qupath(result, each, geojson, alone, config)
        except MorphogenError as error:
            if len(named) == 1 or concerns_all(error):
                raise
            yield Predicted(each.path, error=str(error))
            continue
        yield Predicted(each.path, place, drawn, result.n_obs, result.n_vars, config.draws)


def _section(
    model: ExpressionModel,
    each: SectionInput,
    config: PredictConfig,
    weights: str | None,
    device: str,
    precision: str,
) -> ad.AnnData:
    if each.prepared:
        return load_section(each.path)
    return slide_section(
        each.path, model, config, mpp=each.mpp, weights=weights, device=device, precision=precision
    )


def _qupath(
    result: ad.AnnData, each: SectionInput, geojson: Path | str | None, alone: bool, config: PredictConfig
) -> Path | None:
    if geojson is None:
        return None
    path = Path(geojson)
    if not alone:
        path = writable_folder(path) / f"{each.path.stem}.geojson"
    return write_geojson(result, path, config.geojson_genes)
