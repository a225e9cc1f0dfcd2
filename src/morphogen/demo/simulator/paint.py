"""From cells and fields to stain amounts and masks, and to the images of the two stains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morphogen.core.seeds import seed_for
from morphogen.demo.simulator.cells import Cells, Population
from morphogen.demo.simulator.dab import DabNoise, Target
from morphogen.demo.simulator.fields import GLAND, MALIGNANT, VESSEL, Architecture, Rings
from morphogen.demo.simulator.ground import Epithelium, Ground, Layers, Scene, soft
from morphogen.demo.simulator.noise import Relaxed, SplineNoise, hash_words, normal_of, uniform
from morphogen.demo.simulator.scan import Scanner
from morphogen.demo.simulator.stamps import (
    NUCLEUS_REACH,
    Canvas,
    Grey,
    Nuclei,
    Territories,
    draw_nuclei,
    draw_packing,
    draw_red_cells,
    draw_territories,
    nucleus_reach,
)
from morphogen.demo.simulator.styles import Cell, Patient, Region

# Haemoglobin absorbs in green and blue: red cells are redder than eosin makes collagen.
_HAEMOGLOBIN = np.array([0.10, 0.78, 0.60])


@dataclass(frozen=True)
class Amounts:
    """Stain amounts (base-10 optical density along each stain's unit vector) and masks, each (height, width)."""

    haematoxylin: Grey
    eosin: Grey
    blood: Grey
    counterstain: Grey
    dab_mean: Grey
    dab: Grey
    in_cell: NDArray[np.bool_]  # where the stain's noise has a part that a whole cell shares
    regions: NDArray[np.uint8]
    owner: NDArray[np.int32]  # 1 + row of the cell table of the nucleus, 0 = none


class Painter:
    """Paints windows of one section."""

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
        self._ground = Ground(architecture, keys)
        self._cloud = SplineNoise(120.0, *keys, "thickness")
        self._blood = Relaxed(6.3, *keys, "red-cells", jitter=0.9, spacing=0.95)
        self._bleed = SplineNoise(60.0, *keys, "bleeding")
        self._red = [seed_for(*keys, "red-cell", k) & 0xFFFFFFFF for k in range(2)]
        self._dab_pixel = seed_for(*keys, "dab-pixel", target.name) & 0xFFFFFFFF
        self._dab_cell = seed_for(*keys, "dab", target.name) & 0xFFFFFFFF
        self._scan_he = Scanner(patient.white, *keys, "he")
        self._scan_ihc = Scanner(patient.white, *keys, target.name)

    def amounts(self, window: Canvas, cells: Cells, rings: Rings) -> Amounts:
        """Stain amounts of a window; ``cells`` and ``rings`` must reach REACH and 125 µm beyond it."""
        scene = self._ground.scene(window, rings)
        layers = self._ground.stroma(window, scene)
        if scene.adipose.max() > -1.5:
            self._ground.fat(layers, scene, self._fat_walls(window))
        territories = self._territories(window, cells)
        tint = np.concatenate([[1.0], cells.tint]).astype(np.float32)[territories.owner]
        epithelium = self._ground.epithelium(layers, scene, territories, tint, window.mpp)
        tissue = soft(scene.edge, max(2.4 * window.mpp, 1.2))
        layers.thin(tissue)

        blood = self._red_cells(window, rings)
        nuclei = self._nuclei(window, cells)
        regions = _regions(scene)
        # A nucleus may reach over the edge of the tissue; it is tissue all the same.
        np.copyto(regions, np.uint8(Region.STROMA), where=(regions == Region.GLASS) & (nuclei.owner > 0))
        dab = self._dab(window, cells, nuclei, territories, epithelium, layers, tissue)

        cover = nuclei.alpha
        layers.over(cover, 0.13 + 0.25 * layers.eosin, nuclei.haematoxylin, 0.62 * nuclei.haematoxylin)
        blood *= 1 - cover
        thick = 1 + 0.05 * scene.up(self._cloud(scene.up.x, scene.up.y))
        layers.thin(thick)
        return Amounts(
            layers.haematoxylin, layers.eosin, blood, layers.counterstain, *dab, regions, nuclei.owner
        )

    def _fat_walls(self, window: Canvas) -> Grey:
        _, _, x, y = self.population.fat(*window.box(100.0))
        return draw_packing(window, x, y)

    @staticmethod
    def _grown(window: Canvas, reach: float) -> tuple[Canvas, tuple[slice, slice]]:
        rim = int(np.ceil(reach / window.mpp)) * 2 + 4
        return window.grown(rim), (slice(rim, rim + window.height), slice(rim, rim + window.width))

    def _territories(self, window: Canvas, cells: Cells) -> Territories:
        wide, part = self._grown(window, 13.0)
        which = (cells.type == Cell.TUMOUR) | (cells.type == Cell.EPITHELIAL)
        drawn = draw_territories(wide, cells, which)
        return Territories(drawn.owner[part], drawn.gap[part])

    def _nuclei(self, window: Canvas, cells: Cells) -> Nuclei:
        wide, part = self._grown(window, NUCLEUS_REACH)
        reach = nucleus_reach(cells) + 5 * window.mpp  # patches are a few pixels larger than what they hold
        x0, y0, x1, y1 = window.box()
        shows = (cells.x > x0 - reach) & (cells.x < x1 + reach)
        shows &= (cells.y > y0 - reach) & (cells.y < y1 + reach)
        drawn = draw_nuclei(wide, cells, shows)
        return Nuclei(drawn.haematoxylin[part], drawn.alpha[part], drawn.owner[part])

    def _red_cells(self, window: Canvas, rings: Rings) -> Grey:
        """Red cells in vessels, and some that were spilt."""
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
        draw = uniform(gx, gy, self._red[0])
        outside = (at.nest < -4) & (at.ring < -4) & (at.adipose < -4) & (at.tissue > 4)
        keep = np.flatnonzero((inside & (draw < 0.9)) | (outside & (draw < 0.5 * np.clip(stray, 0, 1))))
        tone = 0.85 + 0.35 * uniform(gy, gx, self._red[1])[keep]
        return draw_red_cells(wide, x[keep], y[keep], tone)[part]

    def cell_normal(self, ids: NDArray) -> NDArray[np.float32]:
        """ε of every cell: the part of its DAB that the H&E does not show."""
        return normal_of(hash_words(ids, np.zeros(1, dtype=np.int64), self._dab_cell))

    def _dab(
        self,
        window: Canvas,
        cells: Cells,
        nuclei: Nuclei,
        territories: Territories,
        epithelium: Epithelium,
        layers: Layers,
        tissue: Grey,
    ) -> tuple[Grey, Grey, NDArray[np.bool_]]:
        """Expected and drawn DAB, and where a cell's own noise takes part."""
        level = np.concatenate([[0.0], self.target.level(cells)]).astype(np.float32)
        mean = 0.010 * tissue
        mean += 0.10 * layers.counterstain
        if self.target.membranous:
            owner = np.where(epithelium.body > 0.5, territories.owner, 0)
            # Complete, linear membranes with some stain in the cytoplasm; the nucleus stays clear.
            profile = 0.16 + 0.84 * epithelium.line
            profile *= 1 - 0.8 * nuclei.alpha
            profile *= epithelium.body
        else:
            owner = nuclei.owner
            stain = np.concatenate([[1.0], cells.haematoxylin]).astype(np.float32)
            profile = nuclei.haematoxylin / stain[owner]
            profile *= np.float32(0.45)
            profile += np.float32(0.55)
            profile *= nuclei.alpha
        profile *= level[owner]
        mean += profile
        noise = self.noise
        factor = noise.factor(np.concatenate([[0.0], self.cell_normal(cells.id)]), noise.cell).astype(
            np.float32
        )
        factor[0] = 1.0
        columns, rows = window.x + np.arange(window.width), window.y + np.arange(window.height)
        words = hash_words(columns[None, :], rows[:, None], self._dab_pixel)
        dab = noise.factor(normal_of(words), noise.pixel)
        dab *= factor[owner]
        dab *= mean
        return mean, dab, owner > 0

    def he(self, window: Canvas, amounts: Amounts) -> NDArray[np.uint8]:
        """The H&E image of a window (less the rim of its blur)."""
        patient = self.patient
        stains = [
            (amounts.haematoxylin, patient.stain_h * patient.haematoxylin),
            (amounts.eosin, patient.stain_e * patient.eosin),
        ]
        if amounts.blood.any():
            stains.append((amounts.blood, 0.52 * patient.stain_e * _HAEMOGLOBIN))
        return self._scan_he(window, stains)

    def ihc(self, window: Canvas, amounts: Amounts) -> NDArray[np.uint8]:
        """The immunostained image of a window (less the rim of its blur)."""
        patient = self.patient
        return self._scan_ihc(
            window, [(amounts.counterstain, patient.counterstain), (amounts.dab, patient.dab)]
        )


def _regions(scene: Scene) -> NDArray[np.uint8]:
    regions = np.full(scene.nest.shape, Region.STROMA, dtype=np.uint8)

    def mark(region: Region, where: NDArray[np.bool_]) -> None:
        np.copyto(regions, np.uint8(region), where=where)

    mark(Region.LYMPHOID, scene.lymphoid > 0.5)
    mark(Region.ADIPOSE, scene.adipose > 0)
    mark(Region.TUMOUR, scene.nest > 0)
    inside = scene.ring > 0
    if inside.any():
        mark(Region.EPITHELIUM, inside & (scene.kind == GLAND))
        mark(Region.TUMOUR, inside & (scene.kind == MALIGNANT))
        mark(Region.VESSEL, inside & scene.vessel)
        mark(Region.LUMEN, (scene.lumen > 0) & ~scene.vessel)
    mark(Region.GLASS, scene.edge <= 0)
    return regions
