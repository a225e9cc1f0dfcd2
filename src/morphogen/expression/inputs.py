"""What a user names to be predicted: prepared sections, slides, folders and lists of them; and the loop over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad

from morphogen.core.errors import InputError
from morphogen.core.files import writable_folder
from morphogen.core.reading.listing import list_files
from morphogen.core.running.cohort import run_cohort
from morphogen.core.running.spread import Spread
from morphogen.core.running.work import Item
from morphogen.expression.config import PredictConfig
from morphogen.expression.model import ExpressionModel
from morphogen.expression.sections.grid import slide_section, write_geojson
from morphogen.expression.sections.prepare import load_section
from morphogen.expression.stores.cells import read_cells
from morphogen.expression.stores.elements import stored_image
from morphogen.expression.stores.finding import is_store
from morphogen.expression.stores.writing import TABLE, write_predictions
from morphogen.slides.batch import collect
from morphogen.slides.formats.spatial import open_image, slide_name

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

PREPARED = ".h5ad"


@dataclass(frozen=True)
class SectionInput:
    """A prepared section or a slide, with its µm/px where the user said it."""

    path: Path
    mpp: float | None = None

    @property
    def name(self) -> str:
        """What its results are called."""
        return slide_name(self.path)

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
    store: Path | None = None
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
        lines += [] if self.geojson is None else [f"QuPath: {self.geojson}"]
        return lines if self.store is None else [*lines, f"SpatialData: {self.store}"]


def section_inputs(inputs: Iterable[Path | str], *, mpp: float | None = None) -> list[SectionInput]:
    """Prepared sections and slides of what is named, in order, each once.

    A folder gives its .h5ad files where it holds any, else its slides; a SpatialData store its H&E; lists are read as
    by :func:`morphogen.slides.batch.collect`. :class:`InputError` for what is not there.
    """
    found: dict[Path, SectionInput] = {}
    for item in map(Path, inputs):
        if not item.exists():
            raise InputError("there is no such file or folder", where=item)
        if is_store(item):
            path, stated = stored_image(item)
            found[path] = SectionInput(path, mpp or stated)
            continue
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


@dataclass(frozen=True)
class PredictRoom:
    """An expression model by where it is, and how it predicts: what goes to the processes that do.

    Attributes
    ----------
    model:
        Model folder or hub id.
    out, config, geojson, cells, store, table, device, precision, weights, alone:
        As for :func:`predict_inputs`; ``alone``: ``out`` is the file of the one input.
    """

    out: Path
    config: PredictConfig
    model: str = ""
    weights: str | None = None
    geojson: Path | None = None
    cells: Path | None = None
    store: Path | None = None
    table: str = TABLE
    device: str = "auto"
    precision: str = "auto"
    compile: bool | None = False
    alone: bool = False

    def load(self) -> ExpressionModel:
        return ExpressionModel.from_pretrained(self.model, device=self.device).compile(self.compile)

    def __call__(self, loaded: ExpressionModel, item: Item, path: Path | None) -> Predicted:
        each: SectionInput = item.more
        outlines = None
        if self.cells is not None:
            outlines = read_cells(self.cells, open_image(each.path, mpp=each.mpp))
        if each.prepared:
            section = load_section(path or each.path)
        else:
            section = slide_section(
                each.path,
                loaded,
                self.config,
                mpp=each.mpp,
                weights=self.weights,
                device=self.device,
                precision=self.precision,
                cells=outlines,
                staged=None if path == each.path else path,
            )
        place = self.out if self.alone else writable_folder(self.out) / f"{each.name}{PREPARED}"
        result = loaded(section, self.config, device=self.device, precision=self.precision, out=place)
        drawn = _qupath(result, each, self.geojson, self.alone, self.config, outlines)
        stored = _stored(result, each, self.store, self.alone, self.table, outlines)
        return Predicted(each.path, place, drawn, stored, result.n_obs, result.n_vars, self.config.draws)


def predict_inputs(
    model: ExpressionModel | str | Path,
    inputs: Iterable[Path | str],
    out: Path | str,
    config: PredictConfig,
    *,
    mpp: float | None = None,
    weights: str | None = None,
    geojson: Path | str | None = None,
    cells: Path | str | None = None,
    store: Path | str | None = None,
    table: str = TABLE,
    device: str = "auto",
    precision: str = "auto",
    compile: bool | None = False,
    spread: Spread | None = None,
) -> Iterator[Predicted]:
    """Predict everything that is named, an outcome as each is finished.

    model: loaded, or its folder, which each process of a ``spread`` loads for itself.
    out, geojson, store: files (a SpatialData store) for a single input; folders for several, in which a result has the
    name of its input. cells: outlines that are the spots of a slide, as by
    :func:`~morphogen.expression.stores.cells.read_cells`. table: of the predictions in the store. One bad input among
    several is an outcome with its error, and the others go on; a single one raises.
    """
    spread = spread or Spread()
    named = section_inputs(inputs, mpp=mpp)
    out = Path(out)
    alone = len(named) == 1 and out.suffix.lower() == PREPARED
    stems = [each.name for each in named]
    twice = next((each.path for each in named if stems.count(each.name) > 1), None)
    if twice is not None:
        raise InputError("two inputs have this name, and so would their results", where=twice)
    if not alone and out.suffix.lower() == PREPARED:
        raise InputError(f"{len(named)} inputs do not fit into one file", where=out, fix="Give a folder")
    if cells is not None and (len(named) > 1 or named[0].prepared):
        raise InputError("cells are of one slide", where="--cells", fix="Name that slide alone")
    loaded, folder = (None, str(model)) if isinstance(model, (str, Path)) else (model, "")
    room = PredictRoom(
        out,
        config,
        model=folder,
        weights=weights,
        geojson=None if geojson is None else Path(geojson),
        cells=None if cells is None else Path(cells),
        store=None if store is None else Path(store),
        table=table,
        device=device,
        precision=precision,
        compile=compile,
        alone=alone,
    )
    items = [Item(str(each.path), each.path, each) for each in named]
    replies = run_cohort(
        room,
        items,
        spread,
        out=None if alone else out,
        what="expression predict",
        loaded=loaded,
        workers=spread.processes(len(items)) if spread.gpus else 1,
        facts={"model": folder, "predict": config.to_dict(), "precision": precision},
        written=lambda found: [
            place for place in (found.out, found.geojson, found.store) if place is not None
        ],
        unit="sections",
    )
    for index, reply in replies:
        yield Predicted(named[index].path, error=reply.error) if reply.error else reply.value


def _stored(
    result: ad.AnnData,
    each: SectionInput,
    store: Path | str | None,
    alone: bool,
    table: str,
    outlines: GeoDataFrame | None,
) -> Path | None:
    if store is None:
        return None
    path = Path(store)
    if not alone:
        path = writable_folder(path) / f"{each.name}.zarr"
    return write_predictions(result, path, table, outlines)


def _qupath(
    result: ad.AnnData,
    each: SectionInput,
    geojson: Path | str | None,
    alone: bool,
    config: PredictConfig,
    outlines: GeoDataFrame | None,
) -> Path | None:
    if geojson is None:
        return None
    path = Path(geojson)
    if not alone:
        path = writable_folder(path) / f"{each.name}.geojson"
    return write_geojson(result, path, config.geojson_genes, outlines)
