"""The architecture of the tissue: smooth fields that say what is where, in µm, for any point of an endless plane."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphogen.core.seeds import numpy_generator, seed_for
from morphogen.demo.simulator.noise import Float, Relaxed, SplineNoise, uniform
from morphogen.demo.simulator.styles import MIXTURE, Patient, Style, style_table

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in µm

GLAND, MALIGNANT, VESSEL = 0, 1, 2
FAR = -60.0  # µm: distances to structures are cut off here


@dataclass(frozen=True)
class Outline:
    """Where a section ends and glass begins: an uneven ellipse inside a box of ``width`` × ``height`` µm at (0, 0)."""

    width: float
    height: float
    margin: float = 0.06  # glass around the tissue, relative to the smaller side

    def distance(self, x: Float, y: Float, wobble: Float) -> Float:
        """Rough distance (µm) to the edge of the tissue, positive inside; ``wobble`` is unit noise."""
        gap = self.margin * min(self.width, self.height)
        ax, ay = 0.5 * self.width - gap, 0.5 * self.height - gap
        dx, dy = (x - 0.5 * self.width) / ax, (y - 0.5 * self.height) / ay
        # Between an ellipse and a rectangle, as most sections are.
        radius = (np.abs(dx) ** 3 + np.abs(dy) ** 3) ** (1 / 3)
        return min(ax, ay) * (1 - radius) - (0.8 + 0.5 * wobble) * gap * 0.6


@dataclass(frozen=True)
class Rings:
    """Glands, ducts and vessels: star-shaped walls around a lumen. Every array has one entry per ring."""

    gx: NDArray
    gy: NDArray
    x: Float
    y: Float
    kind: NDArray
    radius: Float  # µm, of the outer border
    wall: Float  # thickness of the wall, µm
    stretch: Float  # length over width
    angle: Float
    wave: NDArray  # (rings, 3, 2): cosine and sine amplitude of harmonics 2–4 of the outer border
    fill: Float  # uniform: what the lumen holds

    def frame(self, index: int, x: Float, y: Float) -> tuple[Float, Float]:
        """Coordinates in which ring ``index`` is a wavy circle about 0."""
        cos, sin = np.cos(self.angle[index]), np.sin(self.angle[index])
        dx, dy = x - self.x[index], y - self.y[index]
        root = self.stretch[index] ** 0.5
        return (dx * cos + dy * sin) / root, (dy * cos - dx * sin) * root

    def border(self, index: int, cos: Float, sin: Float) -> Float:
        """Outer radius (µm, in the ring's frame) towards direction (cos, sin)."""
        radius = np.ones_like(cos)
        c, s = cos, sin
        for (a, b), _ in zip(self.wave[index], range(3)):
            c, s = c * cos - s * sin, s * cos + c * sin
            radius = radius + a * c + b * s
        return self.radius[index] * radius

    def depth(self, index: int, x: Float, y: Float) -> Float:
        """Depth below the outer border (µm, positive inside)."""
        u, v = self.frame(index, x, y)
        distance = np.sqrt(u * u + v * v) + 1e-9
        return self.border(index, u / distance, v / distance) - distance

    def reach(self, index: int) -> float:
        """No part of the ring is farther from its centre (µm)."""
        return float(self.radius[index] * self.stretch[index] ** 0.5 * (1 + np.abs(self.wave[index]).sum()))

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class Fields:
    """Values at the points asked for; every array has their shape. Distances in µm, positive inside."""

    amounts: Style  # of arrays: the local mixture of styles
    tissue: Float  # distance to the edge of the tissue
    nest: Float  # distance to the border of tumour nests and cords
    adipose: Float  # distance to the border of fat
    lymphoid: Float  # lymphocyte density, 0–1
    ring: Float  # depth below the outer border of the nearest gland or vessel
    ring_kind: NDArray
    ring_wall: Float
    ring_fill: Float
    across: tuple[Float, Float]  # coordinates across the two fibre systems, µm
    along: tuple[Float, Float]
    which: Float  # share of the first fibre system, 0–1

    def part(self, index: slice) -> Fields:
        """The values at some of the points."""
        amounts = Style(*(getattr(self.amounts, each.name)[index] for each in fields(Style)))
        across, along = (tuple(each[index] for each in pair) for pair in (self.across, self.along))
        rest = {
            name: getattr(self, name)[index]
            for name in (
                "tissue",
                "nest",
                "adipose",
                "lymphoid",
                "ring",
                "ring_kind",
                "ring_wall",
                "ring_fill",
                "which",
            )
        }
        return Fields(amounts=amounts, across=across, along=along, **rest)  # type: ignore[arg-type]


class Architecture:
    """The fields of one patient's section in one style; see :class:`Fields`."""

    GLAND_PITCH = 104.0
    VESSEL_PITCH = 170.0

    def __init__(
        self, seed: int, patient: Patient, section: int, style: str, outline: Outline | None
    ) -> None:
        keys = (seed, patient.name, section)
        self.patient, self.outline = patient, outline
        self.names, self.table = style_table(style)

        def noise(period: float, name: str) -> SplineNoise:
            return SplineNoise(period, *keys, name)

        self._mix = (
            SplineNoise(300.0, *keys, "mix", channels=len(self.names)) if len(self.names) > 1 else None
        )
        self._warp = SplineNoise(38.0, *keys, "warp", channels=2)
        self._nest = noise(62.0, "nest"), noise(24.0, "nest-fine")
        self._cord = noise(34.0, "cord"), noise(48.0, "cord-break")
        self._lymph = noise(95.0, "lymph"), noise(32.0, "lymph-fine")
        self._fat = noise(190.0, "fat"), noise(52.0, "fat-fine")
        self._flow = noise(150.0, "flow-1"), noise(190.0, "flow-2")
        self._which = noise(34.0, "which")
        self._edge = noise(260.0, "edge"), noise(40.0, "edge-fine")
        self._trait = SplineNoise(170.0, *keys, "trait", channels=3)
        first = numpy_generator(*keys, "fibre-angle").random() * np.pi
        self._angles = first, first + 1.1
        self._gland_points = Relaxed(self.GLAND_PITCH, *keys, "glands", jitter=0.9, spacing=0.95)
        self._vessel_points = Relaxed(self.VESSEL_PITCH, *keys, "vessels", jitter=0.9, spacing=0.6)
        self._streams = {
            name: seed_for(*keys, "ring", name) & 0xFFFFFFFF
            for name in (
                "keep",
                "kind",
                "radius",
                "wall",
                "stretch",
                "angle",
                "fill",
                *(f"wave-{k}" for k in range(6)),
            )
        }

    # -- mixture of styles ---------------------------------------------------------------------------------------

    def weights(self, x: Float, y: Float) -> Float:
        """Share of every style of ``self.names`` at the points: (styles, ...), sums to 1."""
        if self._mix is None:
            return np.ones((1, *np.broadcast_shapes(x.shape, y.shape)))
        logits = 3.2 * self._mix(x, y)
        share = np.log([MIXTURE[name] for name in self.names]) + self.patient.preference
        logits += share.reshape(-1, *(1,) * (logits.ndim - 1))
        logits -= logits.max(axis=0)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=0)
        return logits

    def amounts(self, x: Float, y: Float) -> Style:
        """The style amounts at the points (a :class:`Style` of arrays)."""
        weights = self.weights(x, y)
        values = []
        for column in self.table.T:  # no matrix product: its rounding may depend on the number of points
            value = weights[0] * column[0]
            for k in range(1, len(column)):
                value = value + weights[k] * column[k]
            values.append(value)
        return Style(*values)

    # -- rings ---------------------------------------------------------------------------------------------------

    def rings(self, box: Box) -> Rings:
        """Every gland and vessel that may touch the box."""
        margin = 125.0  # a ring's reach, and that of its pull on the fibres around it
        wide = (box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin)
        glands = self._make_rings(self._gland_points(*wide), vessel=False)
        vessels = self._make_rings(self._vessel_points(*wide), vessel=True)
        both = {
            each.name: (getattr(glands, each.name), getattr(vessels, each.name)) for each in fields(Rings)
        }
        return Rings(**{name: np.concatenate(pair) for name, pair in both.items()})

    def _make_rings(self, points: tuple, vessel: bool) -> Rings:
        gx, gy, x, y = points
        # Vessels share the hash streams of the glands, far away from them.
        hx = gx + 1_000_003 if vessel else gx

        draws = uniform(hx, gy, np.array(list(self._streams.values()))[:, None])
        draw = dict(zip(self._streams, draws)).__getitem__

        amounts = self.amounts(x, y)
        keep = draw("keep") < (amounts.vessels if vessel else amounts.glands)
        keep &= self._tissue(x, y) > 30.0
        if not vessel:
            keep &= self._adipose(x, y, amounts) < -15.0
        size = draw("radius")
        if vessel:
            kind = np.full(len(x), VESSEL)
            radius = 7.5 + 20.0 * size**2.2
            wall = 1.6 + 0.16 * radius * draw("wall")
            stretch = 1.0 + 1.6 * draw("stretch") ** 2
            wave = 0.05
        else:
            kind = np.where(draw("kind") < amounts.malignant, MALIGNANT, GLAND)
            stretch = 1.0 + 0.75 * draw("stretch") ** 1.5
            radius = (30.0 + 19.0 * size) / stretch**0.5
            wall = np.minimum(14.0 + 7.0 * draw("wall") + 3.0 * (kind == MALIGNANT), 0.85 * radius)
            wave = 0.085
        waves = np.stack([draw(f"wave-{k}") * 2 - 1 for k in range(6)], axis=-1).reshape(-1, 3, 2) * wave
        values = (gx, gy, x, y, kind, radius, wall, stretch, np.pi * draw("angle"), waves, draw("fill"))
        return Rings(*(value[keep] for value in values))

    # -- fields --------------------------------------------------------------------------------------------------

    def _tissue(self, x: Float, y: Float) -> Float:
        if self.outline is None:
            return np.full(np.broadcast_shapes(x.shape, y.shape), 1e4)
        coarse = np.clip(self._edge[0](x, y), -1.5, 1.5)
        return self.outline.distance(x, y, coarse) + 9.0 * self._edge[1](x, y)

    def on_tissue(self, x: Float, y: Float, margin: float = 0.0) -> NDArray[np.bool_]:
        """Which points (µm) lie on tissue, more than ``margin`` µm from the glass."""
        return self._tissue(x, y) > margin

    def _adipose(self, x: Float, y: Float, amounts: Style) -> Float:
        return 95.0 * (self._fat[0](x, y) + 0.3 * self._fat[1](x, y) + amounts.adipose)

    def __call__(self, x: Float, y: Float, rings: Rings) -> Fields:
        """Fields at positions in µm (points, or (1, W) and (H, 1) for a grid) given the rings of their box."""
        amounts = self.amounts(x, y)
        tissue = self._tissue(x, y)
        adipose = np.minimum(self._adipose(x, y, amounts), tissue - 12.0)
        shape = adipose.shape

        warp = 11.0 * self._warp(x, y)
        wx, wy = x + warp[0], y + warp[1]
        nest = 52.0 * (0.88 * self._nest[0](wx, wy) + 0.42 * self._nest[1](wx, wy) - amounts.nests)
        nest = np.clip(nest, FAR, -FAR)

        ring, kind, wall, fill = self._ring_fields(x, y, rings, shape)

        pull = 1.1 * np.clip(nest, -28.0, 10.0) + 1.3 * np.clip(ring, -24.0, 5.0)
        across, along = [], []
        for angle, flow, drift in zip(self._angles, self._flow, (88.0, 110.0)):
            cos, sin = np.cos(angle), np.sin(angle)
            across.append(x * cos + y * sin + drift * flow(x, y) + pull)
            along.append(y * cos - x * sin)
        which = 1 / (1 + np.exp(-5.0 * self._which(x, y)))

        # Cords run along the first fibre system, in broken lines.
        ridge = self._cord[0](across[0], 0.3 * along[0])
        cord = 1.7 * (amounts.cords - 24.0 * np.abs(ridge) + 5.0 * self._cord[1](x, y))
        nest = np.maximum(nest, np.clip(cord, FAR, None))
        nest = np.minimum(np.minimum(nest, -adipose), tissue - 3.0)

        crowd = (
            self._lymph[0](x, y) + 0.45 * self._lymph[1](x, y) + amounts.lymphoid + self.patient.infiltration
        )
        lymphoid = 1 / (1 + np.exp(-3.0 * (crowd - 0.2)))
        return Fields(
            amounts,
            tissue,
            nest,
            adipose,
            lymphoid,
            ring,
            kind,
            wall,
            fill,
            tuple(across),
            tuple(along),
            which,
        )

    def _ring_fields(self, x: Float, y: Float, rings: Rings, shape: tuple[int, ...]) -> tuple:
        depth = np.full(shape, FAR)
        kind, wall, fill = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)
        grid = len(shape) == 2
        part: Any
        for index in range(len(rings)):
            reach = rings.reach(index) + 45.0
            if grid:
                cols = np.flatnonzero(np.abs(x[0] - rings.x[index]) < reach)
                rows = np.flatnonzero(np.abs(y[:, 0] - rings.y[index]) < reach)
                if not len(cols) or not len(rows):
                    continue
                part = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
                new = rings.depth(index, x[:, part[1]], y[part[0]])
            else:
                part = np.flatnonzero(
                    (np.abs(x - rings.x[index]) < reach) & (np.abs(y - rings.y[index]) < reach)
                )
                if not len(part):
                    continue
                new = rings.depth(index, x[part], y[part])
            better = new > depth[part]
            depth[part] = np.where(better, new, depth[part])
            kind[part] = np.where(better, rings.kind[index], kind[part])
            wall[part] = np.where(better, rings.wall[index], wall[part])
            fill[part] = np.where(better, rings.fill[index], fill[part])
        return depth, kind, wall, fill

    def traits(self, x: Float, y: Float) -> Float:
        """The three clone fields (unit variance) behind the visible traits of tumour cells, (3, points)."""
        return self._trait(x, y)
