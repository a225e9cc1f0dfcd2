"""From cells and fields to stain amounts, and from stain amounts to what a scanner sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphogen.core.seeds import seed_for
from morphogen.demo.tissue_cells import Cells, Population
from morphogen.demo.tissue_dab import DabNoise, Target
from morphogen.demo.tissue_fields import GLAND, MALIGNANT, VESSEL, Architecture, Fields, Rings
from morphogen.demo.tissue_noise import (
    ORIENTATIONS,
    Float,
    Relaxed,
    SplineNoise,
    fibre_textures,
    granule_texture,
    hash_words,
    normal_of,
    uniform,
)
from morphogen.demo.tissue_stamps import (
    NUCLEUS_REACH,
    Canvas,
    Grey,
    Nuclei,
    Territories,
    draw_nuclei,
    draw_packing,
    draw_red_cells,
    draw_territories,
)
from morphogen.demo.tissue_styles import Cell, Patient, Region

# Haemoglobin absorbs in green and blue: red cells are redder than eosin makes collagen.
_HAEMOGLOBIN = np.array([0.10, 0.78, 0.60])
_GRID = 3.0  # µm between the points at which the fields are computed; pixels between them are interpolated


@dataclass(frozen=True)
class Amounts:
    """Stain amounts (base-10 optical density along each stain's unit vector) and masks, each (height, width)."""

    haematoxylin: Grey
    eosin: Grey
    blood: Grey
    counterstain: Grey
    dab_mean: Grey
    dab: Grey
    in_cell: NDArray[np.bool_]
    regions: NDArray[np.uint8]
    owner: NDArray[np.int32]


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

    def __call__(self, values: Float) -> Grey:
        """Values at every pixel from values at the grid's points."""
        values = np.asarray(values, dtype=np.float32)
        slope = np.diff(values, axis=1)
        rows = slope[:, self._jx]
        rows *= self._tx
        rows += values[:, self._jx]
        slope = np.diff(rows, axis=0)
        full = slope[self._jy]
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
        return values[self._jy[:, None], self._jx[None, :]]


def _soft(distance: Grey, width: float) -> Grey:
    """0 where ``distance`` ≤ −width/2, 1 where ≥ width/2, linear between (µm)."""
    return np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)


class Painter:
    """Paints windows of one section."""

    RIM = 3  # pixels of window beyond what is asked for, for the scanner's blur

    def __init__(
        self,
        seed: int,
        patient: Patient,
        section: int,
        architecture: Architecture,
        population: Population,
        target: Target,
        noise: DabNoise,
    ) -> None:
        keys = (seed, patient.name, section)
        self.patient, self.architecture, self.population = patient, architecture, population
        self.target, self.noise = target, noise
        self._wave = SplineNoise(11.0, *keys, "wave", channels=2)
        self._drift = SplineNoise(160.0, *keys, "drift", channels=2)
        self._border = SplineNoise(5.5, *keys, "border")
        self._patch = SplineNoise(20.0, *keys, "patch")
        self._cloud = SplineNoise(120.0, *keys, "thickness")
        self._blood = Relaxed(6.3, *keys, "red-cells", jitter=0.9, spacing=0.95)
        self._bleed = SplineNoise(60.0, *keys, "bleeding")
        self._scan = [seed_for(*keys, "scanner", k) & 0xFFFFFFFF for k in range(3)]
        self._dab_stream = seed_for(*keys, "dab-pixel", target.name) & 0xFFFFFFFF
        self._keys = keys

    # -- stain amounts -------------------------------------------------------------------------------------------

    def amounts(self, window: Canvas, cells: Cells, rings: Rings) -> Amounts:
        """Stain amounts of a window; ``cells`` and ``rings`` must reach REACH and 125 µm beyond it."""
        mpp = window.mpp
        up = Interpolator(window)
        at = self.architecture(up.x, up.y, rings)
        px = ((window.x + np.arange(window.width) + 0.5) * mpp).astype(np.float64)[None, :]
        py = ((window.y + np.arange(window.height) + 0.5) * mpp).astype(np.float64)[:, None]
        border = self._border(px, py).astype(np.float32)
        patch = up(self._patch(up.x, up.y))
        granules = self._granules(window)
        soft = max(1.2 * mpp, 0.6)

        nest = up(at.nest) + 0.9 * border
        ring = up(at.ring) + 0.35 * border
        lumen = ring - up(at.ring_wall) + 0.9 * border
        kind = up.nearest(at.ring_kind)
        vessel = kind == VESSEL
        fill = up.nearest(at.ring_fill).astype(np.float32)
        lymphoid = up(at.lymphoid)
        tissue = _soft(up(at.tissue) + 1.5 * border, 2 * soft)

        # Stroma: fibres of two crossing systems, open space between their bundles.
        strand, bundle = self._fibres(up, at, window)
        loose = up(np.broadcast_to(at.amounts.looseness, at.nest.shape)) + 0.11 * patch
        solid = np.clip((0.65 * bundle + 0.35 * strand - loose) * np.float32(7.0) + np.float32(0.5), 0, 1)
        collagen = up(np.broadcast_to(at.amounts.collagen, at.nest.shape))
        eosin = collagen * (0.34 + 0.78 * strand + 0.28 * bundle) * (1 + 0.10 * granules + 0.08 * patch)
        eosin *= 0.07 + 0.93 * solid
        haem = (0.06 + 0.08 * strand) * (1 + 0.25 * granules) * (0.15 + 0.85 * solid)
        counter = (0.028 + 0.050 * strand) * (0.3 + 0.7 * solid)
        # Lymphoid tissue has hardly any fibres.
        net = (1 + 0.3 * granules) * (0.25 + 0.75 * np.clip(3.0 * strand, 0, 1))
        eosin += lymphoid * (0.15 * net - eosin)
        haem += lymphoid * (0.13 * net - haem)
        counter += lymphoid * (0.05 - counter)

        # Fat: empty cells with thin walls.
        adipose = up(at.adipose)
        if adipose.max() > -3:
            cover = _soft(adipose, 3.0)
            wall = self._fat_walls(window)
            wall = _soft(0.55 + 0.25 * border - wall, 0.9)
            eosin += cover * (0.30 * wall - eosin)
            haem += cover * (0.03 * wall - haem)
            counter += cover * (0.03 * wall - counter)

        # Cytoplasm of tumour nests and of glands.
        cleft = up(np.broadcast_to(at.amounts.clefts, at.nest.shape)) * np.clip(patch + 0.4, 0, 1.6)
        open_space = _soft(-np.abs(nest + 0.5 * cleft + 0.5) + 0.5 * cleft, 1.0) * (cleft > 0.15)
        for layer in (eosin, haem, counter):
            layer *= 1 - 0.92 * open_space
        epithelium = (cells.type == Cell.TUMOUR) | (cells.type == Cell.EPITHELIAL)
        territories = self._territories(window, cells, epithelium)
        tint = np.concatenate([[1.0], cells.tint]).astype(np.float32)[territories.owner]
        in_nest = _soft(nest, soft)
        wall_place = np.clip(ring / np.maximum(ring - lumen, 1.0), 0, 1)  # 0 at the base, 1 at the lumen
        in_wall = _soft(ring, soft)
        in_lumen = _soft(lumen, soft)
        body = np.maximum(in_nest, in_wall * ~vessel)
        body *= 1 - in_lumen
        # Borders between cells and, with nothing beyond, of the epithelium itself.
        edge = 2 * np.maximum(np.maximum(nest, ring * ~vessel), 0)
        line = 1 / (1 + (np.minimum(territories.gap, edge) * np.float32(1 / 0.8)) ** 2)
        grain = 1 + 0.26 * granules + 0.10 * patch
        cyto_e = 0.235 * tint * grain * (1 + 0.22 * line)
        cyto_h = 0.170 * (1 + 0.28 * granules) * (1 - 0.35 * line)
        apical = in_wall * wall_place
        cyto_e *= 1 - 0.25 * apical
        cyto_h *= 1 - 0.55 * apical
        eosin += body * (cyto_e - eosin)
        haem += body * (cyto_h - haem)
        counter += body * (0.055 * (1 + 0.3 * granules) - counter)
        # Vessel wall: smooth muscle, pink.
        muscle = in_wall * vessel
        eosin += muscle * (0.36 * (1 + 0.2 * granules) - eosin)
        haem += muscle * (0.05 - haem)
        counter += muscle * (0.04 - counter)
        # Lumen: white, sometimes with secretion; plasma in vessels.
        pool = np.where(vessel, 0.05, np.where(fill > 0.72, 0.13 * (1 + 0.25 * patch), 0.008)).astype(
            np.float32
        )
        eosin += in_lumen * (pool * (1 + 0.3 * granules) - eosin)
        haem += in_lumen * (0.1 * pool - haem)
        counter += in_lumen * (0.06 * pool - counter)
        for layer in (eosin, haem, counter):
            layer *= tissue

        blood = self._red_cells(window, rings)
        nuclei = self._nuclei(window, cells)
        regions = self._regions(up(at.tissue), nest, ring, lumen, kind, adipose, lymphoid)

        # A nucleus may reach over the edge of the tissue; it is tissue all the same.
        np.copyto(regions, np.uint8(Region.STROMA), where=(regions == Region.GLASS) & (nuclei.owner > 0))

        dab_mean, dab, in_cell = self._dab(
            window, cells, nuclei, territories, body, line, nest, tissue, counter
        )
        cover = nuclei.alpha
        haem += cover * (nuclei.haematoxylin - haem)
        eosin += cover * (0.13 + 0.25 * eosin - eosin)
        counter += cover * (0.62 * nuclei.haematoxylin - counter)
        blood *= 1 - cover
        thick = 1 + 0.05 * up(self._cloud(up.x, up.y))
        haem *= thick
        eosin *= thick
        return Amounts(haem, eosin, blood, counter, dab_mean, dab, in_cell, regions, nuclei.owner)

    def _granules(self, window: Canvas) -> Grey:
        texture = granule_texture()
        scale = window.mpp / 0.5
        rows = ((window.y + np.arange(window.height)) * scale).astype(np.int64) % 512
        cols = ((window.x + np.arange(window.width)) * scale).astype(np.int64) % 512
        return texture[rows[:, None], cols[None, :]]

    def _fibres(self, up: Interpolator, at: Fields, window: Canvas) -> tuple[Grey, Grey]:
        """Ranks (0–1) of the strands and of the bundles of collagen at every pixel."""
        # The two fibre systems are blended as orientations: doubled angles have no sense of direction.
        cos, sin = np.zeros(at.which.shape), np.zeros(at.which.shape)
        for share, across in ((at.which, at.across[0]), (1 - at.which, at.across[1])):
            gx, gy = up.slope(across)
            power = gx * gx + gy * gy + 1e-12
            cos += share * (gy * gy - gx * gx) / power
            sin -= share * 2 * gx * gy / power
        turn = np.arctan2(up(sin), up(cos)) * np.float32(0.5 * ORIENTATIONS / np.pi)
        turn += np.float32(ORIENTATIONS) * (turn < 0)
        lower = np.minimum(turn.astype(np.int32), ORIENTATIONS - 1)
        turn -= lower
        # Slow drift hides that the textures repeat; fast drift makes the fibres wavy.
        wave = self._wave(up.x, up.y)
        scale = np.float32(window.mpp / 0.5)
        px = (window.x + np.arange(window.width)).astype(np.float32)[None, :] * scale
        py = (window.y + np.arange(window.height)).astype(np.float32)[:, None] * scale
        slow = self._drift(up.x, up.y)
        col = np.floor(up(70.0 * slow[0] + 3.2 * wave[0]) + px).astype(np.int32) & 511
        row = np.floor(up(70.0 * slow[1] + 3.2 * wave[1]) + py).astype(np.int32) & 511
        textures = fibre_textures()
        flat = textures.reshape(2, -1)
        index = (lower * 512 + row) * 512 + col
        out = []
        for channel in range(2):
            first = flat[channel][index]
            second = flat[channel][index + 512 * 512]
            second -= first
            second *= turn
            second += first
            out.append(second)
        return out[0], out[1]

    def _fat_walls(self, window: Canvas) -> Grey:
        x0, y0, x1, y1 = window.box(100.0)
        _, _, x, y = self.population.fat(x0, y0, x1, y1)
        return draw_packing(window, x, y)

    def _grown(self, window: Canvas, reach: float) -> tuple[Canvas, tuple[slice, slice]]:
        rim = int(np.ceil(reach / window.mpp)) * 2 + 4
        return window.grown(rim), (slice(rim, rim + window.height), slice(rim, rim + window.width))

    def _territories(self, window: Canvas, cells: Cells, which: NDArray[np.bool_]) -> Territories:
        wide, part = self._grown(window, 13.0)
        drawn = draw_territories(wide, cells, which)
        return Territories(drawn.owner[part], drawn.gap[part])

    def _nuclei(self, window: Canvas, cells: Cells) -> Nuclei:
        wide, part = self._grown(window, NUCLEUS_REACH)
        drawn = draw_nuclei(wide, cells)
        return Nuclei(drawn.haematoxylin[part], drawn.alpha[part], drawn.owner[part])

    def _red_cells(self, window: Canvas, rings: Rings) -> Grey:
        wide, part = self._grown(window, 4.2)
        gx, gy, x, y = self._blood(*wide.box())
        stray = self._bleed(x, y) - 1.8
        near = stray > 0
        for index in np.flatnonzero(rings.kind == VESSEL).tolist():
            near |= np.hypot(x - rings.x[index], y - rings.y[index]) < rings.reach(index)
        if not near.any():
            return np.zeros((window.height, window.width), dtype=np.float32)
        gx, gy, x, y, stray = gx[near], gy[near], x[near], y[near], stray[near]
        at = self.architecture(x, y, rings)
        inside = (at.ring_kind == VESSEL) & (at.ring > at.ring_wall + 1.8) & (at.ring_fill < 0.75)
        draw = uniform(gx, gy, self._scan[0] ^ 0x5BD1E995)
        outside = (at.nest < -4) & (at.ring < -4) & (at.adipose < -4) & (at.tissue > 4)
        keep = np.flatnonzero((inside & (draw < 0.9)) | (outside & (draw < 0.5 * np.clip(stray, 0, 1))))
        tone = 0.85 + 0.35 * uniform(gy, gx, self._scan[1] ^ 0x5BD1E995)[keep]
        return draw_red_cells(wide, x[keep], y[keep], tone)[part]

    @staticmethod
    def _regions(
        tissue: Grey, nest: Grey, ring: Grey, lumen: Grey, kind: NDArray, adipose: Grey, lymphoid: Grey
    ) -> NDArray[np.uint8]:
        regions = np.full(tissue.shape, Region.STROMA, dtype=np.uint8)
        regions[lymphoid > 0.5] = Region.LYMPHOID
        regions[adipose > 0] = Region.ADIPOSE
        regions[nest > 0] = Region.TUMOUR
        inside = ring > 0
        for ring_kind, region in (
            (GLAND, Region.EPITHELIUM),
            (MALIGNANT, Region.TUMOUR),
            (VESSEL, Region.VESSEL),
        ):
            regions[inside & (kind == ring_kind)] = region
        regions[(lumen > 0) & (kind != VESSEL)] = Region.LUMEN
        regions[tissue <= 0] = Region.GLASS
        return regions

    # -- DAB -----------------------------------------------------------------------------------------------------

    def cell_normal(self, ids: NDArray) -> NDArray[np.float32]:
        """ε of every cell: the part of its DAB that the H&E does not show."""
        return normal_of(
            hash_words(ids, np.zeros(1, dtype=np.int64), seed_for(*self._keys, "dab", self.target.name))
        )

    def _dab(
        self,
        window: Canvas,
        cells: Cells,
        nuclei: Nuclei,
        territories: Territories,
        body: Grey,
        line: Grey,
        nest: Grey,
        tissue: Grey,
        counter: Grey,
    ) -> tuple[Grey, Grey, NDArray[np.bool_]]:
        level = np.concatenate([[0.0], self.target.level(cells)]).astype(np.float32)
        stain = np.concatenate([[1.0], cells.haematoxylin]).astype(np.float32)
        epsilon = np.concatenate([np.zeros(1, dtype=np.float32), self.cell_normal(cells.id)])
        mean = 0.010 * tissue + 0.10 * counter
        if self.target.membranous:
            owner = np.where(body > 0.5, territories.owner, 0)
            # Complete, linear membranes with some stain in the cytoplasm; the nucleus stays clear.
            profile = 0.16 + 0.84 * line
            profile *= 1 - 0.8 * nuclei.alpha
            profile *= body
        else:
            owner = nuclei.owner
            profile = nuclei.alpha * (0.55 + 0.45 * nuclei.haematoxylin / stain[owner])
        mean += level[owner] * profile
        words = hash_words(
            window.x + np.arange(window.width)[None, :],
            window.y + np.arange(window.height)[:, None],
            self._dab_stream,
        )
        noise = self.noise
        factor = noise.factor(epsilon, noise.cell).astype(np.float32)
        factor[0] = 1.0
        dab = mean * factor[owner]
        dab *= noise.factor(normal_of(words), noise.pixel).astype(np.float32)
        return mean, dab, owner > 0

    # -- scanner -------------------------------------------------------------------------------------------------

    def scan(
        self, window: Canvas, stains: list[tuple[Grey, NDArray[np.float64]]], which: int
    ) -> NDArray[np.uint8]:
        """What the scanner sees of stain amounts on a window: Beer–Lambert, blur, noise; less RIM on every side."""
        rim = self.RIM
        out = np.empty((window.height - 2 * rim, window.width - 2 * rim, 3), dtype=np.uint8)
        x = window.x + rim + np.arange(out.shape[1])[None, :]
        y = window.y + rim + np.arange(out.shape[0])[:, None]
        words = hash_words(x, y, self._scan[0] + which)
        sigma = 0.34 / window.mpp  # optical resolution, µm
        for channel in range(3):
            density = stains[0][0] * np.float32(stains[0][1][channel])
            for amount, vector in stains[1:]:
                density += amount * np.float32(vector[channel])
            density *= np.float32(-np.log(10.0))
            light = np.exp(density, out=density)
            light = ndimage.gaussian_filter(light, sigma, radius=rim, mode="nearest")[rim:-rim, rim:-rim]
            light *= np.float32(self.patient.white[channel])
            words = words * np.uint32(0x9E3779B1) + np.uint32(0x85EBCA6B)
            light += np.float32(1.6) * normal_of(words)
            light += np.float32(0.5)
            np.clip(light, 0, 255, out=light)
            out[..., channel] = light
        return out

    def he(self, window: Canvas, amounts: Amounts) -> NDArray[np.uint8]:
        """The H&E image of a window (less RIM on every side)."""
        patient = self.patient
        stains = [
            (amounts.haematoxylin, patient.stain_h * patient.haematoxylin),
            (amounts.eosin, patient.stain_e * patient.eosin),
            (amounts.blood, 0.52 * patient.stain_e * _HAEMOGLOBIN),
        ]
        return self.scan(window, stains, 0)

    def ihc(self, window: Canvas, amounts: Amounts) -> NDArray[np.uint8]:
        """The immunostained image of a window (less RIM on every side)."""
        patient = self.patient
        stains = [(amounts.counterstain, patient.counterstain), (amounts.dab, patient.dab)]
        return self.scan(window, stains, 7)
