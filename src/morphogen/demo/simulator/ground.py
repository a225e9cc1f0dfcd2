"""What lies around the nuclei: collagen, fat, cytoplasm and lumens, as stain amounts at every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphogen.demo.simulator.fields import VESSEL, Architecture, Fields, Rings
from morphogen.demo.simulator.noise import ORIENTATIONS, Float, SplineNoise, fibre_textures, granule_texture
from morphogen.demo.simulator.stamps import Canvas, Grey, Territories

_GRID = 3.0  # µm between the points at which the fields are computed; pixels between them are interpolated


class Interpolator:
    """Bilinear interpolation from a coarse grid fixed to the absolute pixel grid."""

    def __init__(self, window: Canvas) -> None:
        self.step = max(1, round(_GRID / window.mpp))
        # One point more than needed on every side, for central differences.
        first_x, first_y = window.x // self.step - 1, window.y // self.step - 1
        last_x = (window.x + window.width - 1) // self.step + 2
        last_y = (window.y + window.height - 1) // self.step + 2
        mpp = window.mpp
        self.x = ((np.arange(first_x, last_x + 1) * self.step + 0.5) * mpp)[None, :]
        self.y = ((np.arange(first_y, last_y + 1) * self.step + 0.5) * mpp)[:, None]
        px, py = window.x + np.arange(window.width), window.y + np.arange(window.height)
        self._jx, self._jy = px // self.step - first_x, py // self.step - first_y
        self._tx = ((px % self.step) / self.step).astype(np.float32)[None, :]
        self._ty = ((py % self.step) / self.step).astype(np.float32)[:, None]

    def __call__(self, values: Any) -> Grey:
        """Values at every pixel from values at the grid's points (or one value for all)."""
        values = np.asarray(values, dtype=np.float32)
        if values.size == 1:
            return np.full((len(self._jy), len(self._jx)), values.item(), dtype=np.float32)
        rows = np.diff(values, axis=1)[:, self._jx]
        rows *= self._tx
        rows += values[:, self._jx]
        full = np.diff(rows, axis=0)[self._jy]
        full *= self._ty
        full += rows[self._jy]
        return full

    def slope(self, values: Float) -> tuple[Float, Float]:
        """Central differences of grid values towards x and y (per grid step); 0 on the rim, which nothing uses."""
        along_x, along_y = np.zeros_like(values), np.zeros_like(values)
        along_x[:, 1:-1] = 0.5 * (values[:, 2:] - values[:, :-2])
        along_y[1:-1] = 0.5 * (values[2:] - values[:-2])
        return along_x, along_y

    def nearest(self, values: NDArray) -> NDArray:
        """Values of the grid point left of and above every pixel."""
        return values[:, self._jx][self._jy]


def soft(distance: Grey, width: float) -> Grey:
    """0 where ``distance`` ≤ −width/2, 1 where ≥ width/2, linear between (µm)."""
    out = distance * np.float32(1 / width)
    out += np.float32(0.5)
    return np.clip(out, 0, 1, out=out)


@dataclass(frozen=True)
class Scene:
    """What is where at every pixel of a window, each array (height, width); distances in µm, positive inside."""

    at: Fields  # the fields at the grid points
    up: Interpolator
    nest: Grey
    ring: Grey
    lumen: Grey
    vessel: NDArray[np.bool_]  # whether the nearest ring is a vessel
    kind: NDArray
    fill: Grey
    adipose: Grey
    lymphoid: Grey  # share, 0–1
    edge: Grey  # distance to the glass
    border: Grey  # fine noise
    patch: Grey  # coarse noise
    granules: Grey


class Layers:
    """Stain amounts that are painted over one another: eosin, haematoxylin, and the counterstain of the IHC."""

    def __init__(self, eosin: Grey, haematoxylin: Grey, counterstain: Grey) -> None:
        self.eosin, self.haematoxylin, self.counterstain = eosin, haematoxylin, counterstain

    def over(
        self, cover: Grey, eosin: Float | float, haematoxylin: Float | float, counterstain: Float | float
    ) -> None:
        """Paint amounts over what is there, where ``cover`` (0–1) says."""
        pairs = ((self.eosin, eosin), (self.haematoxylin, haematoxylin), (self.counterstain, counterstain))
        for layer, value in pairs:
            change = value - layer
            change *= cover
            layer += change

    def thin(self, factor: Grey) -> None:
        """Multiply all amounts."""
        for layer in (self.eosin, self.haematoxylin, self.counterstain):
            layer *= factor


@dataclass(frozen=True)
class Epithelium:
    """Cover of epithelial cytoplasm and its borders between cells, each (height, width), 0–1."""

    body: Grey
    line: Grey


class Ground:
    """Paints everything but nuclei and red cells of one section.

    Where a structure is absent from a window its painting is left out, which changes no value: covers are exactly 0
    outside of it.
    """

    def __init__(self, architecture: Architecture, keys: tuple[int | str, ...]) -> None:
        self._architecture = architecture
        self._wave = SplineNoise(11.0, *keys, "wave", channels=2)
        self._drift = SplineNoise(160.0, *keys, "drift", channels=2)
        self._border = SplineNoise(5.5, *keys, "border")
        self._patch = SplineNoise(20.0, *keys, "patch")

    def scene(self, window: Canvas, rings: Rings) -> Scene:
        """The fields at every pixel of a window."""
        up = Interpolator(window)
        at = self._architecture(up.x, up.y, rings)
        x = ((window.x + np.arange(window.width) + 0.5) * window.mpp)[None, :]
        y = ((window.y + np.arange(window.height) + 0.5) * window.mpp)[:, None]
        border = self._border(x, y)
        ring = up(at.ring) + 0.35 * border
        kind = up.nearest(at.ring_kind)
        return Scene(
            at=at,
            up=up,
            nest=up(at.nest) + 0.9 * border,
            ring=ring,
            lumen=ring - up(at.ring_wall) + 0.9 * border,
            vessel=kind == VESSEL,
            kind=kind,
            fill=up.nearest(at.ring_fill).astype(np.float32),
            adipose=up(at.adipose),
            lymphoid=np.clip(1.08 * up(at.lymphoid) - 0.04, 0, 1),
            edge=up(at.tissue) + 1.5 * border,
            border=border,
            patch=up(self._patch(up.x, up.y)),
            granules=_granules(window),
        )

    def stroma(self, window: Canvas, scene: Scene) -> Layers:
        """Collagen of two crossing systems with open space between its bundles; lymphoid tissue has little of it."""
        amounts, up = scene.at.amounts, scene.up
        strand, bundle = self._fibres(window, scene)
        loose = up(amounts.looseness) + 0.11 * scene.patch
        solid = 0.65 * bundle + 0.35 * strand
        solid -= loose
        solid = soft(solid, 1 / 7)
        eosin = 0.34 + 0.78 * strand
        eosin += 0.28 * bundle
        eosin *= up(amounts.collagen)
        eosin *= 1 + 0.10 * scene.granules + 0.08 * scene.patch
        eosin *= 0.07 + 0.93 * solid
        haematoxylin = (0.06 + 0.08 * strand) * (1 + 0.25 * scene.granules)
        haematoxylin *= 0.15 + 0.85 * solid
        counterstain = (0.028 + 0.050 * strand) * (0.3 + 0.7 * solid)
        layers = Layers(eosin, haematoxylin, counterstain)
        if scene.lymphoid.any():
            net = (1 + 0.3 * scene.granules) * (0.25 + 0.75 * np.minimum(3.0 * strand, 1))
            layers.over(scene.lymphoid, 0.15 * net, 0.13 * net, 0.05)
        return layers

    def _fibres(self, window: Canvas, scene: Scene) -> tuple[Grey, Grey]:
        """Ranks (0–1) of the strands and of the bundles of collagen at every pixel."""
        at, up = scene.at, scene.up
        # The two fibre systems are blended as orientations: doubled angles have no sense of direction.
        cos, sin = np.zeros(at.which.shape), np.zeros(at.which.shape)
        for share, across in ((at.which, at.across[0]), (1 - at.which, at.across[1])):
            gx, gy = up.slope(across)
            power = gx * gx + gy * gy + 1e-12
            cos += share * (gy * gy - gx * gx) / power
            sin -= share * 2 * gx * gy / power
        turn = np.arctan2(up(sin), up(cos))
        turn *= np.float32(0.5 * ORIENTATIONS / np.pi)
        turn += np.float32(ORIENTATIONS) * (turn < 0)
        lower = np.minimum(turn.astype(np.int32), ORIENTATIONS - 1)
        turn -= lower
        # Slow drift hides that the textures repeat; fast drift makes the fibres wavy.
        shift = 70.0 * self._drift(up.x, up.y) + 3.2 * self._wave(up.x, up.y)
        scale = np.float32(window.mpp / 0.5)
        px = (window.x + np.arange(window.width)).astype(np.float32)[None, :] * scale
        py = (window.y + np.arange(window.height)).astype(np.float32)[:, None] * scale
        col = np.floor(up(shift[0]) + px).astype(np.int32) & 511
        row = np.floor(up(shift[1]) + py).astype(np.int32) & 511
        index = (lower * 512 + row) * 512 + col
        following = index + 512 * 512
        out = []
        for flat in fibre_textures().reshape(2, -1):
            first, second = flat.take(index), flat.take(following)
            second -= first
            second *= turn
            second += first
            out.append(second)
        return out[0], out[1]

    @staticmethod
    def fat(layers: Layers, scene: Scene, wall: Grey) -> None:
        """Empty cells with thin walls; ``wall`` is the distance to the border between fat cells."""
        cover = soft(scene.adipose, 3.0)
        shown = soft(0.55 + 0.25 * scene.border - wall, 0.9)
        layers.over(cover, 0.30 * shown, 0.03 * shown, 0.03 * shown)

    @staticmethod
    def epithelium(
        layers: Layers, scene: Scene, territories: Territories, tint: Grey, mpp: float
    ) -> Epithelium:
        """Clefts around nests, cytoplasm of nests and glands, vessel walls, lumens.

        ``tint`` (height, width) is the relative eosin of the cell whose territory a pixel lies in.
        """
        width = max(1.2 * mpp, 0.6)
        granules, patch = scene.granules, scene.patch
        near = scene.nest.max() > -8
        if near:
            cleft = scene.up(scene.at.amounts.clefts) * np.clip(patch + 0.4, 0, 1.6)
            gap = soft(0.5 * cleft - np.abs(scene.nest + 0.5 * cleft + 0.5), 1.0) * (cleft > 0.15)
            layers.thin(1 - 0.92 * gap)
        rings = scene.ring.max() > -2
        body = soft(scene.nest, width)
        if not (near or rings):
            return Epithelium(body, np.zeros_like(body))
        in_wall, in_lumen = soft(scene.ring, width), soft(scene.lumen, width)
        body = np.maximum(body, in_wall * ~scene.vessel)
        body *= 1 - in_lumen
        # Borders between cells and, with nothing beyond, of the epithelium itself.
        edge = 2 * np.maximum(np.maximum(scene.nest, scene.ring * ~scene.vessel), 0)
        line = np.minimum(territories.gap, edge)
        line *= np.float32(1 / 0.8)
        line *= line
        line += 1
        np.reciprocal(line, out=line)
        eosin = 0.235 * tint * (1 + 0.26 * granules + 0.10 * patch)
        eosin *= 1 + 0.22 * line
        haematoxylin = 0.170 * (1 + 0.28 * granules)
        haematoxylin *= 1 - 0.35 * line
        if rings:  # paler towards the lumen
            apical = np.clip(scene.ring / np.maximum(scene.ring - scene.lumen, 1.0), 0, 1) * in_wall
            eosin *= 1 - 0.25 * apical
            haematoxylin *= 1 - 0.55 * apical
        layers.over(body, eosin, haematoxylin, 0.055 * (1 + 0.3 * granules))
        if rings:
            # The wall of a vessel is smooth muscle. A lumen is white, sometimes with secretion; plasma in vessels.
            layers.over(in_wall * scene.vessel, 0.36 * (1 + 0.2 * granules), 0.05, 0.04)
            secretion = np.float32(0.13) * (1 + 0.25 * patch)
            pool = np.where(scene.fill > 0.72, secretion, np.float32(0.008))
            pool = np.where(scene.vessel, np.float32(0.05), pool)
            layers.over(in_lumen, pool * (1 + 0.3 * granules), 0.1 * pool, 0.06 * pool)
        return Epithelium(body, line)


def _granules(window: Canvas) -> Grey:
    scale = window.mpp / 0.5
    rows = ((window.y + np.arange(window.height)) * scale).astype(np.int64) % 512
    cols = ((window.x + np.arange(window.width)) * scale).astype(np.int64) % 512
    return granule_texture()[rows][:, cols]
