"""Simulated expression: expectations that add up over the cells, counts that scatter about them as stated."""

from __future__ import annotations

import numpy as np
import pytest

from morphogen.demo import Cell, TissueSimulator
from morphogen.demo.simulator.genes import MARKERS, PROGRAMS, make_genes


@pytest.fixture(scope="module")
def simulator() -> TissueSimulator:
    return TissueSimulator(11, patient="A", style="mixed")


@pytest.fixture(scope="module")
def centres() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 3000, (150, 2))


def test_expectation_is_the_sum_over_the_cells_under_the_spot(simulator: TissueSimulator) -> None:
    centre = np.array([700.0, 900.0])
    spots = simulator.spots(centre[None], 80.0)
    x, y = centre * 0.5
    cells = simulator.cells(x - 60, y - 60, x + 60, y + 60)
    under = cells.take(np.hypot(cells.x - x, cells.y - y) < 40.0)
    model = simulator.genes
    expected = model.ambient + sum(row @ model.profile for row in model.activity(under))
    expected = expected * model.baseline(11, "A") * spots.capture[0]
    assert len(under) > 3
    assert np.allclose(spots.mean[0], expected)
    assert spots.types[0].sum() == len(under)
    assert spots.cells["fibroblast"].iloc[0] == (under.type == Cell.FIBROBLAST).sum()


def test_counts_scatter_about_the_expectation_as_stated(
    simulator: TissueSimulator, centres: np.ndarray
) -> None:
    spots = simulator.spots(centres)
    assert spots.counts.dtype == np.int32 and spots.counts.min() >= 0
    variance = spots.mean + spots.dispersion * spots.mean**2
    residual = (spots.counts - spots.mean) / np.sqrt(variance)
    n = residual.size
    assert abs(residual.mean()) < 4 / np.sqrt(n)
    # The fourth moment of gamma-Poisson residuals sets how well a variance of 1 can be known.
    spread = np.sqrt((residual**4).mean() / n)
    assert abs((residual**2).mean() - 1) < 4 * spread
    # Dispersion gene by gene: the moment estimate over well-expressed genes lies about the truth.
    rich = spots.mean.mean(axis=0) > 8
    assert rich.sum() > 20
    excess = ((spots.counts - spots.mean) ** 2 - spots.mean)[:, rich].sum(axis=0)
    estimate = excess / (spots.mean[:, rich] ** 2).sum(axis=0)
    assert np.median(estimate / spots.dispersion[rich]) == pytest.approx(1, abs=0.15)
    assert np.corrcoef(np.log(np.maximum(estimate, 1e-3)), np.log(spots.dispersion[rich]))[0, 1] > 0.7


def test_a_spot_has_its_counts_in_any_company(simulator: TissueSimulator, centres: np.ndarray) -> None:
    all_of_them = simulator.spots(centres[:30])
    some = simulator.spots(centres[[17, 4, 29]])
    assert np.array_equal(some.counts, all_of_them.counts[[17, 4, 29]])
    assert np.array_equal(some.mean, all_of_them.mean[[17, 4, 29]])
    # The grid of pixels makes no difference either.
    finer = simulator.at_mpp(0.25).spots(2 * centres[:5])
    assert np.array_equal(finer.counts, all_of_them.counts[:5])


def test_markers_follow_their_cells(simulator: TissueSimulator, centres: np.ndarray) -> None:
    spots = simulator.spots(centres)
    share = spots.mean / spots.mean.sum(axis=1, keepdims=True)
    for program, cell in (("lymphocyte", "lymphocyte"), ("fibroblast", "fibroblast"), ("tumour", "tumour")):
        columns = [spots.genes.index(name) for name in MARKERS[program].split()]
        cells = spots.cells[cell] / np.maximum(spots.types.sum(axis=1), 1)
        assert np.corrcoef(share[:, columns].sum(axis=1), cells)[0, 1] > 0.6, program


def test_state_genes_follow_what_the_immunostain_shows() -> None:
    sim = TissueSimulator(11, patient="A", style="nests")
    cells = sim.cells(0, 0, 300, 300)
    tumour = cells.take(cells.type == Cell.TUMOUR)
    activity = sim.genes.activity(tumour)[:, PROGRAMS.index("her2")]
    assert np.corrcoef(activity, tumour.trait[:, 1])[0, 1] > 0.9
    profile = sim.genes.profile
    erbb2, actb = sim.genes.genes.index("ERBB2"), sim.genes.genes.index("ACTB")
    assert profile[PROGRAMS.index("her2"), erbb2] > 0
    assert profile[PROGRAMS.index("her2"), actb] == 0


def test_patients_share_programs_and_differ_in_baseline() -> None:
    one, other = (TissueSimulator(11, patient=name) for name in "AB")
    assert one.genes is other.genes
    first, second = (one.genes.baseline(11, name) for name in "AB")
    assert np.std(np.log(first)) == pytest.approx(0.25, rel=0.2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


def test_larger_panels_keep_the_named_genes() -> None:
    small, large = make_genes(0, 200), make_genes(0, 1000)
    assert len(large.genes) == 1000 == len(set(large.genes))
    assert {"ESR1", "ERBB2", "MT-CO1", "RPL3", "ACTB"} <= set(small.genes) & set(large.genes)
    assert list(large.genes) == sorted(large.genes)
