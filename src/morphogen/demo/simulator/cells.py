"""Where the cells are and what each one looks like: a table that is a pure function of position."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from morphogen.core.seeds import seed_for
from morphogen.demo.simulator.fields import GLAND, MALIGNANT, VESSEL, Architecture, Box, Fields, Rings
from morphogen.demo.simulator.noise import Float, Relaxed, normal, uniform
from morphogen.demo.simulator.styles import LOOKS, Cell, Patient

REACH = 21.0  # µm: no part of a cell is farther from its nucleus's centre
TERRITORY = 13.0  # µm: no point of a cell's cytoplasm is farther from its territory's centre

# An identity is unique within about 100 mm: 14 bits per axis for lattices, 10 and a running number for rings.
_LATTICE = 1 << 28
_NEST, _STROMA, _LYMPH, _FAT, _GLANDS, _VESSELS = range(6)


@dataclass(frozen=True)
class Cells:
    """One entry per cell in every array; lengths in µm, angles in radians, stain in base-10 optical density."""

    id: NDArray[np.int32]  # unique, the same in every window
    x: Float  # nucleus centre
    y: Float
    type: NDArray[np.uint8]  # :class:`Cell`
    angle: Float  # of the nucleus's long axis
    major: Float  # half its length
    minor: Float
    haematoxylin: Float
    chromatin: Float  # relative contrast of clumps
    vesicle: Float  # how much paler the middle is
    nucleoli: Float  # expected number
    ragged: Float
    mitosis: NDArray[np.bool_]
    tint: Float  # eosin of the cytoplasm, relative
    cx: Float  # centre of the cytoplasm
    cy: Float
    tall: Float  # how much longer than wide the cytoplasm is, along `lean`
    lean: Float
    trait: Float  # (cells, 3): visible traits of tumour cells, about N(0, 1); 0 for others
    # trait 0: pale vesicular nuclei; 1: eosin-rich cytoplasm; 2: coarse dark chromatin

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: NDArray) -> Cells:
        """The cells at ``index`` (integers or booleans)."""
        return Cells(**{each.name: getattr(self, each.name)[index] for each in fields(Cells)})

    def columns(self) -> dict[str, NDArray]:
        """One-dimensional columns, for a data frame."""
        flat = {each.name: getattr(self, each.name) for each in fields(Cells) if each.name != "trait"}
        return {**flat, **{f"trait_{k}": self.trait[:, k] for k in range(3)}}


class Population:
    """Places the cells of one section."""

    MARGIN = 8.0  # µm: cells farther apart than this are never in each other's way

    def __init__(self, seed: int, patient: Patient, section: int, architecture: Architecture) -> None:
        keys = (seed, patient.name, section)
        self.patient, self.architecture = patient, architecture
        self._nest = Relaxed(12.0, *keys, "nest-cells", jitter=0.9, spacing=0.98)
        self._stroma = Relaxed(11.5, *keys, "stroma-cells", jitter=1.0, spacing=0.8)
        self._lymph = Relaxed(7.4, *keys, "lymph-cells", jitter=0.8, spacing=0.98)
        self.fat = Relaxed(60.0, *keys, "fat-cells", jitter=0.7, spacing=0.9)
        self._streams: dict[str, int] = {}
        self._ring_cache: dict[tuple, tuple] = {}
        self._keys = keys

    def _stream(self, name: str) -> int:
        if name not in self._streams:
            self._streams[name] = seed_for(*self._keys, "cell", name) & 0xFFFFFFFF
        return self._streams[name]

    def uniform(self, ids: NDArray, name: str) -> Float:
        """Uniform deviates of the cells with these identities."""
        return uniform(ids, np.zeros(1, dtype=np.int64), self._stream(name))

    def normal(self, ids: NDArray, *names: str) -> Float:
        """Standard normal deviates of the cells with these identities: (cells,), or (names, cells) for several."""
        streams = np.array([self._stream(name) for name in names])[:, None]
        values = normal(ids, np.zeros(1, dtype=np.int64), streams).astype(np.float64)
        return values[0] if len(names) == 1 else values

    def __call__(self, box: Box, rings: Rings | None = None) -> Cells:
        """Every cell whose nucleus centre lies in the box (µm), in order of identity.

        ``rings`` of a box MARGIN wider may be handed in when they are known.
        """
        m = self.MARGIN
        wide = (box[0] - m, box[1] - m, box[2] + m, box[3] + m)
        if rings is None:
            rings = self.architecture.rings(wide)
        # One look at the fields for the candidates of all layers: small calls cost more than many points.
        layers = (
            (self._nest, self._nest_cells),
            (self._stroma, self._stroma_cells),
            (self._lymph, self._lymph_cells),
        )
        points = [layer(*wide) for layer, _ in layers]
        fat = self._fat_candidates(wide)
        around, depth = self._ring_candidates(wide, rings)
        x = np.concatenate([*(point[2] for point in points), fat[2], around[1]])
        y = np.concatenate([*(point[3] for point in points), fat[3], around[2]])
        at = self.architecture(x, y, rings)
        parts, start = [], 0
        for (_, choose), point in zip(layers, points):
            stop = start + len(point[0])
            parts.append(choose(*point, at.part(slice(start, stop)), rings))
            start = stop
        stop = start + len(fat[0])
        parts.append(self._fat_cells(fat, at.part(slice(start, stop))))
        # Where two rings overlap, the deeper one has the place.
        keep = (depth >= at.ring[stop:] - 1e-6) & (at.tissue[stop:] > 4.0)
        parts.append(tuple(column[keep] for column in around))
        columns = [np.concatenate(column) for column in zip(*parts)]
        keep = self._without_overlaps(*columns[:4])
        x, y = columns[1], columns[2]
        keep &= (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
        columns = [column[keep] for column in columns]
        order = np.argsort(columns[0], kind="stable")
        return self._looks(*(column[order] for column in columns))

    # Each layer gives: id, x, y, type, angle, cytoplasm centre x, y, tallness, lean.

    @staticmethod
    def _lattice_id(layer: int, gx: NDArray, gy: NDArray) -> NDArray[np.int64]:
        return 1 + layer * _LATTICE + (gy % 16384) * 16384 + gx % 16384

    @staticmethod
    def _round(ids: NDArray, x: Float, y: Float, kinds: NDArray, angle: Float) -> tuple:
        return ids, x, y, kinds, angle, x, y, np.ones(len(x)), np.zeros(len(x))

    def _nest_cells(self, gx: NDArray, gy: NDArray, x: Float, y: Float, at: Fields, rings: Rings) -> tuple:
        ids = self._lattice_id(_NEST, gx, gy)
        keep = (at.nest > 1.5) & (at.ring < -3.0) & (self.uniform(ids, "keep") < 0.96)
        ids, x, y = ids[keep], x[keep], y[keep]
        return self._round(ids, x, y, np.full(len(x), Cell.TUMOUR), np.pi * self.uniform(ids, "angle"))

    def _stroma_cells(self, gx: NDArray, gy: NDArray, x: Float, y: Float, at: Fields, rings: Rings) -> tuple:
        ids = self._lattice_id(_STROMA, gx, gy)
        density = at.amounts.cellularity * (1 - 0.75 * at.lymphoid)
        keep = (at.nest < -2.0) & (at.ring < -2.2) & (at.adipose < -2.0) & (at.tissue > 4.0)
        keep &= self.uniform(ids, "keep") < density
        ids, x, y = ids[keep], x[keep], y[keep]
        immune = self.uniform(ids, "immune") < 0.07 + 0.4 * at.lymphoid[keep]
        across = at.across[0][keep], at.across[1][keep]
        angle = self.fibre_angle(x, y, across, at.which[keep], rings) + 0.22 * self.normal(ids, "angle")
        return self._round(ids, x, y, np.where(immune, Cell.LYMPHOCYTE, Cell.FIBROBLAST), angle)

    def fibre_angle(
        self, x: Float, y: Float, across: tuple[Float, Float], which: Float, rings: Rings
    ) -> Float:
        """Direction of the stroma's fibres (radians) at points whose ``across`` and ``which`` are known."""
        step = 1.5
        near = self.architecture(np.concatenate([x + step, x]), np.concatenate([y, y + step]), rings)
        angles = []
        for here, beside in zip(across, near.across):
            right, below = beside.reshape(2, -1)
            angles.append(np.arctan2(below - here, right - here) + np.pi / 2)
        return np.where(which > 0.5, angles[0], angles[1])

    def _lymph_cells(self, gx: NDArray, gy: NDArray, x: Float, y: Float, at: Fields, rings: Rings) -> tuple:
        ids = self._lattice_id(_LYMPH, gx, gy)
        outside = (at.nest < -1.0) & (at.ring < -2.0) & (at.adipose < -3.0)
        # A few wander into nests and epithelium.
        density = np.where(outside, 0.93 * at.lymphoid, 0.12 * at.lymphoid + 0.012)
        keep = (self.uniform(ids, "keep") < density) & (at.tissue > 4.0) & (at.adipose < -1.0)
        keep &= (at.ring < 0) | ((at.ring_kind != VESSEL) & (at.ring < at.ring_wall - 2.0))
        ids, x, y = ids[keep], x[keep], y[keep]
        return self._round(ids, x, y, np.full(len(x), Cell.LYMPHOCYTE), np.pi * self.uniform(ids, "angle"))

    def _fat_candidates(self, box: Box) -> tuple:
        m = 100.0
        gx, gy, x, y = self.fat(box[0] - m, box[1] - m, box[2] + m, box[3] + m)
        # The nucleus lies flat on the border with the nearest neighbour, half-way between the two.
        nearest = cKDTree(np.column_stack([x, y])).query(np.column_stack([x, y]), k=2)[1][:, 1]
        nx, ny = 0.5 * (x + x[nearest]), 0.5 * (y + y[nearest])
        angle = np.arctan2(y[nearest] - y, x[nearest] - x) + np.pi / 2
        near = (nx >= box[0]) & (nx < box[2]) & (ny >= box[1]) & (ny < box[3])
        return gx[near], gy[near], nx[near], ny[near], angle[near]

    def _fat_cells(self, candidates: tuple, at: Fields) -> tuple:
        gx, gy, x, y, angle = candidates
        ids = self._lattice_id(_FAT, gx, gy)
        keep = (at.adipose > 2.0) & (at.ring < -4.0) & (self.uniform(ids, "keep") < 0.75)
        ids, x, y, angle = ids[keep], x[keep], y[keep], angle[keep]
        return self._round(ids, x, y, np.full(len(x), Cell.ADIPOCYTE), angle)

    def _ring_candidates(self, box: Box, rings: Rings) -> tuple[tuple, Float]:
        """Cells of all rings that reach into the box, and how deep each lies in its own ring."""
        none = np.zeros(0)
        parts = [(none.astype(np.int64), none, none, none.astype(np.int64), *(none,) * 6)]
        for index in range(len(rings)):
            reach = rings.reach(index)
            x, y = rings.x[index], rings.y[index]
            if box[0] - reach < x < box[2] + reach and box[1] - reach < y < box[3] + reach:
                key = (int(rings.gx[index]), int(rings.gy[index]), rings.kind[index] == VESSEL)
                if key not in self._ring_cache:
                    if len(self._ring_cache) >= 512:
                        self._ring_cache.pop(next(iter(self._ring_cache)))
                    self._ring_cache[key] = self._one_ring(index, rings)
                parts.append(self._ring_cache[key])
        *columns, depth = (np.concatenate(column) for column in zip(*parts))
        return tuple(columns), depth

    def _one_ring(self, index: int, rings: Rings) -> tuple:
        kind = int(rings.kind[index])
        turn = np.arange(65) * (2 * np.pi / 64)
        x, y = self._on_ring(index, rings, turn, np.zeros(65))
        length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
        spacing = {GLAND: 6.6, MALIGNANT: 6.0, VESSEL: 14.0}[kind]
        count = int(np.clip(length[-1] / spacing, 3, 255))
        number = np.arange(count)
        place = ((rings.gy[index] % 1024) * 1024 + rings.gx[index] % 1024) * 256
        ids = 1 + 4 * _LATTICE + (_LATTICE if kind == VESSEL else 0) + place + number
        at = (number + 0.5 + 0.5 * (self.uniform(ids, "along") - 0.5)) / count * length[-1]
        turn = np.interp(at, length, turn)
        wall = float(rings.wall[index])
        if kind == VESSEL:
            depth = np.full(count, 0.5 * wall)
        elif kind == GLAND:
            depth = 5.2 + 1.1 * self.normal(ids, "depth")
        else:  # pseudo-stratified: nuclei at two heights
            depth = np.where(number % 2 == 0, 5.0, 0.62 * wall) + 1.3 * self.normal(ids, "depth")
        depth = np.clip(depth, 0.3 * min(wall, 6.0), max(0.75 * wall, 0.5))
        x, y = self._on_ring(index, rings, turn, depth)
        ax, ay = self._on_ring(index, rings, turn, depth + 0.5)
        inward = np.arctan2(ay - y, ax - x)
        mx, my = self._on_ring(index, rings, turn, np.full(count, 0.5 * wall))
        angle = inward + (np.pi / 2 if kind == VESSEL else 0.0) + 0.18 * self.normal(ids, "angle")
        cell = {GLAND: Cell.EPITHELIAL, MALIGNANT: Cell.TUMOUR, VESSEL: Cell.ENDOTHELIAL}[kind]
        tall = np.full(count, 1.0 if kind == VESSEL else 1.9)
        return ids, x, y, np.full(count, cell), angle, mx, my, tall, inward, rings.depth(index, x, y)

    @staticmethod
    def _on_ring(index: int, rings: Rings, turn: Float, depth: Float) -> tuple[Float, Float]:
        cos, sin = np.cos(turn), np.sin(turn)
        radius = np.maximum(rings.border(index, cos, sin) - depth, 0.0)
        root = rings.stretch[index] ** 0.5
        u, v = radius * cos * root, radius * sin / root
        c, s = np.cos(rings.angle[index]), np.sin(rings.angle[index])
        return rings.x[index] + u * c - v * s, rings.y[index] + u * s + v * c

    def _without_overlaps(self, ids: NDArray, x: Float, y: Float, kinds: NDArray) -> NDArray[np.bool_]:
        """False for a candidate that lies on one of higher rank; ranks are total, so that every window agrees."""
        keep = np.ones(len(ids), dtype=bool)
        if len(ids) < 2:
            return keep
        looks = {kind: 0.8 * (look.major * look.minor) ** 0.5 for kind, look in LOOKS.items()}
        radius = np.array([looks.get(Cell(k), 0.0) for k in range(len(Cell))])[kinds]
        # Rings first, then nests, fat, stroma and lymphocytes.
        layer = (ids - 1) // _LATTICE
        rank = np.array([2, 4, 5, 3, 0, 1])[layer] + self.uniform(ids, "rank")
        pairs = cKDTree(np.column_stack([x, y])).query_pairs(2 * radius.max(), output_type="ndarray")
        a, b = pairs[:, 0], pairs[:, 1]
        # Neighbours of one layer were pushed apart already: they may touch and overlap a little, as cells do.
        room = (radius[a] + radius[b]) * np.where(layer[a] == layer[b], 0.75, 0.95)
        close = np.hypot(x[a] - x[b], y[a] - y[b]) < room
        a, b = a[close], b[close]
        keep[np.where(rank[a] > rank[b], a, b)] = False
        return keep

    def _looks(
        self, ids: NDArray, x: Float, y: Float, kinds: NDArray, angle: Float, *cytoplasm: Float
    ) -> Cells:
        table = np.zeros((len(Cell), 8))
        for kind, look in LOOKS.items():
            table[kind] = [getattr(look, each.name) for each in fields(look)]
        major, minor, vary, stain, chromatin, vesicle, nucleoli, ragged = table[kinds].T
        tumour = kinds == Cell.TUMOUR
        patient = self.patient

        # Traits: the clone's field and the cell's own deviation, around the patient's level. All of it shows.
        names = ("size", "stretch", "stain", "tint", "trait-0", "trait-1", "trait-2")
        size, longer, darker, pinker, *traits = self.normal(ids, *names)
        own = np.stack(traits, axis=1)
        level = 0.6 * np.array([patient.er, patient.her2, patient.proliferation])
        trait = level + 0.85 * self.architecture.traits(x, y).T + 0.55 * own
        trait = np.clip(trait, -2.6, 2.6) * tumour[:, None]
        pale, pink, coarse = trait.T

        vary = vary * np.where(tumour, patient.pleomorphism, 1.0)
        scale = np.exp(vary * size + 0.05 * pale + 0.05 * coarse)
        scale = scale * np.where(tumour, patient.nuclear_size, 1.0)
        stretch = np.exp(0.5 * vary * np.abs(longer))
        major = np.clip(major * scale * stretch, 1.0, 11.5)
        minor = np.clip(minor * scale / stretch, 0.9, 9.0)
        stain = stain * np.exp(0.10 * darker - 0.22 * pale + 0.10 * coarse)
        mitosis = tumour & (self.uniform(ids, "mitosis") < 0.02 / (1 + np.exp(-2.0 * coarse)))
        return Cells(
            id=ids.astype(np.int32),
            x=x,
            y=y,
            type=kinds.astype(np.uint8),
            angle=angle,
            major=np.where(mitosis, 0.85 * major, major),
            minor=np.where(mitosis, 0.5 * minor, minor),
            haematoxylin=np.where(mitosis, 1.35, stain),
            chromatin=np.minimum(chromatin * np.exp(0.30 * coarse), 0.42),
            vesicle=np.where(mitosis, 0.0, np.clip(vesicle + 0.13 * pale, 0.0, 0.75)),
            nucleoli=np.where(mitosis, 0.0, nucleoli * np.exp(0.4 * pale)),
            ragged=np.where(mitosis, 0.16, ragged),
            mitosis=mitosis,
            tint=np.exp(0.10 * pinker + 0.28 * pink),
            cx=cytoplasm[0],
            cy=cytoplasm[1],
            tall=cytoplasm[2],
            lean=cytoplasm[3],
            trait=trait,
        )
