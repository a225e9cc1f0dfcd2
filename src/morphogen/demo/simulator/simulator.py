"""The tissue simulator: H&E, immunostain, masks and gene counts of tissue whose truth is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.core.seeds import numpy_generator
from morphogen.demo.simulator.cells import REACH, Cells, Population
from morphogen.demo.simulator.dab import DabNoise, target_of
from morphogen.demo.simulator.fields import Architecture, Outline
from morphogen.demo.simulator.genes import TYPE_PROGRAMS, GeneModel, Spots, make_genes
from morphogen.demo.simulator.paint import Painter
from morphogen.demo.simulator.scan import rim_of
from morphogen.demo.simulator.stamps import Canvas
from morphogen.demo.simulator.styles import make_patient

BLOCK = 1024  # pixels: larger windows are rendered in blocks of this size, to bound memory


@dataclass(frozen=True)
class Tissue:
    """A rendered window. Arrays are (height, width) or (height, width, 3)."""

    x: int  # absolute position of the first pixel
    y: int
    mpp: float
    he: NDArray[np.uint8]
    ihc: NDArray[np.uint8]
    dab_od: NDArray[np.float32]  # drawn DAB optical density (base 10, before the scanner's blur)
    dab_od_mean: NDArray[np.float32]  # its expectation given what the H&E shows
    dab_od_sd: NDArray[np.float32]  # its standard deviation about that expectation
    instances: NDArray[np.int32]  # nucleus identity, 0 = none; the same in every window
    classes: NDArray[np.uint8]  # cell type of the nucleus (:class:`Cell`), 0 = none
    regions: NDArray[np.uint8]  # tissue region (:class:`Region`)
    cell_columns: dict[str, NDArray]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per nucleus with its centre in the window, positions in absolute µm."""
        return pd.DataFrame(self.cell_columns)


class TissueSimulator:
    """An endless plane of simulated tissue, a pure function of seed, patient, section and absolute position.

    seed
        the world: all patients of one world share nothing but the rules.
    patient
        name; decides stains, scanner, tumour biology and baseline expression.
    style
        one of ``STYLES`` or ``"mixed"``, which varies over the slide.
    mpp
        µm per pixel. Cells and regions do not depend on it.
    target
        immunostain: er, pr, ki67 (nuclear) or her2 (membranous).
    section
        another piece of the same patient.
    outline
        where the section ends and glass begins; ``None`` is tissue everywhere.
    noise
        size of the noise in the immunostain.
    n_genes
        size of the transcriptome that :meth:`spots` counts.
    spread
        how far stains and nuclei of patients lie apart, as a multiple of the usual.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        patient: str | int = "P1",
        style: str = "mixed",
        mpp: float = 0.5,
        target: str = "er",
        section: int = 0,
        outline: Outline | None = None,
        noise: DabNoise | None = None,
        n_genes: int = 400,
        spread: float = 1.0,
    ) -> None:
        if not 0.1 <= mpp <= 4.0:
            raise InputError(f"the tissue simulator cannot draw at {mpp} µm per pixel", fix="Use 0.1 to 4")
        self.seed, self.style, self.mpp, self.section = int(seed), style, float(mpp), int(section)
        self.outline = outline
        self.noise, self.spread = noise or DabNoise(), float(spread)
        self._names: dict[str, str | int] = {
            "patient": str(patient),
            "target": target,
            "n_genes": int(n_genes),
        }
        self.target = target_of(target)
        self.patient = make_patient(self.seed, str(patient), float(spread))
        self.genes: GeneModel = make_genes(self.seed, int(n_genes))
        self.architecture = Architecture(self.seed, self.patient, self.section, style, outline)
        self.population = Population(self.seed, self.patient, self.section, self.architecture)
        self.painter = Painter(
            self.seed, self.patient, self.section, self.architecture, self.population, self.target, self.noise
        )

    def describe(self) -> dict[str, object]:
        """Everything that the plane depends on, as plain values."""
        facts = {
            "seed": self.seed,
            **self._names,
            "section": self.section,
            "style": self.style,
            "mpp": self.mpp,
        }
        if self.spread != 1.0:
            facts["spread"] = self.spread
        outline = asdict(self.outline) if self.outline is not None else None
        return {**facts, "outline": outline, "noise": asdict(self.noise)}

    def at_mpp(self, mpp: float) -> TissueSimulator:
        """The same tissue on another pixel grid."""
        names = self._names
        return TissueSimulator(
            self.seed,
            patient=str(names["patient"]),
            style=self.style,
            mpp=mpp,
            target=str(names["target"]),
            section=self.section,
            outline=self.outline,
            noise=self.noise,
            n_genes=int(names["n_genes"]),
            spread=self.spread,
        )

    def cells(self, x0: float, y0: float, x1: float, y1: float) -> Cells:
        """Every cell whose nucleus centre lies in the box (µm)."""
        return self.population((x0, y0, x1, y1))

    def render(self, x: int, y: int, width: int, height: int, *, ihc: bool = True) -> Tissue:
        """The window of ``width`` × ``height`` pixels whose first pixel is (x, y) on the absolute grid.

        Any window, in any order, shows the same plane: a window equals the crop of a larger one to the bit.
        ``ihc=False`` leaves the immunostained image empty (0, 0, 3), for speed.
        """
        if width < 1 or height < 1:
            raise InputError(
                f"a window of {width} × {height} pixels holds nothing", fix="Ask for at least 1 × 1"
            )
        if width <= BLOCK and height <= BLOCK:
            return self._render(x, y, width, height, ihc)
        parts = [
            [
                self._render(x + i, y + j, min(BLOCK, width - i), min(BLOCK, height - j), ihc)
                for i in range(0, width, BLOCK)
            ]
            for j in range(0, height, BLOCK)
        ]

        def join(name: str) -> NDArray:
            return np.concatenate(
                [np.concatenate([getattr(t, name) for t in row], axis=1) for row in parts], axis=0
            )

        names = ("he", "dab_od", "dab_od_mean", "dab_od_sd", "instances", "classes", "regions")
        joined = {name: join(name) for name in names}
        joined["ihc"] = join("ihc") if ihc else np.zeros((0, 0, 3), dtype=np.uint8)
        flat = [tissue.cell_columns for row in parts for tissue in row]
        columns = {name: np.concatenate([each[name] for each in flat]) for name in flat[0]}
        order = np.argsort(columns["id"], kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
        return Tissue(x=x, y=y, mpp=self.mpp, cell_columns=columns, **joined)

    def _render(self, x: int, y: int, width: int, height: int, ihc: bool) -> Tissue:
        rim = rim_of(self.mpp)
        asked = Canvas(int(x), int(y), int(width), int(height), self.mpp)
        window = asked.grown(rim)
        rings = self.architecture.rings(window.box(REACH + self.population.MARGIN))
        cells = self.population(window.box(REACH), rings)
        amounts = self.painter.amounts(window, cells, rings)
        crop = (slice(rim, rim + height), slice(rim, rim + width))
        owner = amounts.owner[crop]
        mean = amounts.dab_mean[crop]
        box = asked.box()
        inside = (cells.x >= box[0]) & (cells.x < box[2]) & (cells.y >= box[1]) & (cells.y < box[3])
        columns = cells.take(inside).columns()
        columns["dab_level"] = self.target.level(cells)[inside]
        return Tissue(
            x=int(x),
            y=int(y),
            mpp=self.mpp,
            he=self.painter.he(window, amounts),
            ihc=self.painter.ihc(window, amounts) if ihc else np.zeros((0, 0, 3), dtype=np.uint8),
            dab_od=amounts.dab[crop].copy(),
            dab_od_mean=mean.copy(),
            dab_od_sd=np.sqrt(self.noise.variance(mean, amounts.in_cell[crop])).astype(np.float32),
            instances=np.concatenate([[0], cells.id]).astype(np.int32)[owner],
            classes=np.concatenate([[0], cells.type]).astype(np.uint8)[owner],
            regions=amounts.regions[crop].copy(),
            cell_columns=columns,
        )

    def spots(self, centres: NDArray, diameter_um: float = 55.0) -> Spots:
        """Gene counts of round spots, with the expectation they were drawn from.

        ``centres`` (spots, 2): x, y in absolute pixels of this simulator's grid. A cell belongs to a spot when its
        nucleus centre lies inside. Counts of a spot are a pure function of its position, in any order or company.
        """
        centres = np.asarray(centres, dtype=np.float64)
        if centres.ndim != 2 or centres.shape[1] != 2 or not np.isfinite(centres).all():
            raise InputError(
                f"spot centres of shape {centres.shape} are not finite x, y pairs",
                fix="Give an array (spots, 2)",
            )
        positions = centres * self.mpp
        model = self.genes
        activity = np.zeros((len(centres), model.profile.shape[0]))
        types = np.zeros((len(centres), len(TYPE_PROGRAMS)), dtype=np.int64)
        radius = 0.5 * diameter_um
        blocks = np.floor(positions / 400.0).astype(np.int64)
        for block in np.unique(blocks, axis=0):
            index = np.flatnonzero((blocks == block).all(axis=1))
            low, high = positions[index].min(axis=0) - radius, positions[index].max(axis=0) + radius
            cells = self.population((low[0], low[1], high[0] + 1e-6, high[1] + 1e-6))
            if not len(cells):
                continue
            each = model.activity(cells)
            for k in index.tolist():
                under = (cells.x - positions[k, 0]) ** 2 + (cells.y - positions[k, 1]) ** 2 < radius * radius
                activity[k] = each[under].sum(axis=0)
                types[k] = np.bincount(cells.type[under], minlength=len(TYPE_PROGRAMS) + 1)[1:]
        baseline = model.baseline(self.seed, self.patient.name)
        counts = np.empty((len(centres), len(model.genes)), dtype=np.int32)
        mean = np.empty(counts.shape)
        capture = np.empty(len(centres))
        for k, (x, y) in enumerate(positions):
            # Nanometres: a whole number that names the place whatever the grid.
            place = (int(round(x * 1000)), int(round(y * 1000)))
            random = numpy_generator(self.seed, self.patient.name, self.section, "spot", *place)
            capture[k] = self.patient.library * np.exp(random.normal(-0.02, 0.2))
            mean[k] = capture[k] * baseline * (activity[k] @ model.profile + model.ambient)
            shape = 1 / model.dispersion
            counts[k] = random.poisson(random.gamma(shape, mean[k] / shape))
        return Spots(model.genes, centres, counts, mean, capture, model.dispersion, types, activity)
