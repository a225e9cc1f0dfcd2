"""From counts to what a network sees, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from morphogen.core.errors import InputError

LogBase = Literal["log1p", "log2p1"]
_LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class Transform:
    """y = log(c·s + 1), with the natural logarithm (``log1p``) or to base 2 (``log2p1``, Stem's).

    s is 1 (``library=False``: raw counts), or ``target / library size`` of the spot over all its genes. The two
    bases differ by a constant factor; raw and library-normalised values do not convert into each other without the
    library size.
    """

    log: LogBase = "log1p"
    library: bool = False
    target: float = 0.0  # library size that spots are scaled to; the training median

    @property
    def unit(self) -> float:
        """What one natural-log unit is in this transform."""
        return 1.0 if self.log == "log1p" else 1.0 / _LN2

    @property
    def name(self) -> str:
        inner = f"counts × {self.target:g} / library size" if self.library else "counts"
        return f"log({inner} + 1)" if self.log == "log1p" else f"log2({inner} + 1)"

    def forward(self, counts: np.ndarray, totals: np.ndarray | None = None) -> np.ndarray:
        """(N, G) counts → (N, G) float32. totals (N,): library sizes over all genes, needed with ``library``."""
        x = np.asarray(counts, dtype=np.float64)
        if self.library:
            if totals is None:
                raise InputError("library normalisation needs the library size of every spot")
            x = x * (self.target / np.maximum(np.asarray(totals, dtype=np.float64), 1.0))[:, None]
        return (np.log1p(x) * self.unit).astype(np.float32)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """(…, G) values → counts (scaled ones with ``library``), never negative, float32."""
        return np.maximum(np.expm1(np.asarray(values, dtype=np.float64) / self.unit), 0.0).astype(np.float32)

    def to(self, other: Transform) -> float:
        """Factor from values of this transform to those of ``other``; an error where none exists."""
        if (self.library, self.target if self.library else 0) != (
            other.library,
            other.target if other.library else 0,
        ):
            raise InputError(
                f"predictions in {self.name} cannot be scored as {other.name}",
                fix="Score them in the transform they were trained in",
            )
        return other.unit / self.unit

    def to_dict(self) -> dict[str, Any]:
        return {"log": self.log, "library": self.library, "target": self.target}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Transform:
        return cls(value["log"], bool(value["library"]), float(value["target"]))


@dataclass(frozen=True)
class Standardiser:
    """Per-gene mean and standard deviation of the training spots, (G,) float32 each."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray) -> Standardiser:
        """A gene that is constant in training keeps its unit: std 1."""
        v = np.asarray(values, dtype=np.float64)
        std = v.std(axis=0)
        return cls(v.mean(axis=0).astype(np.float32), np.where(std > 1e-6, std, 1.0).astype(np.float32))

    @classmethod
    def identity(cls, genes: int) -> Standardiser:
        return cls(np.zeros(genes, np.float32), np.ones(genes, np.float32))

    def forward(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.std

    def inverse(self, values: np.ndarray) -> np.ndarray:
        return values * self.std + self.mean


def keep_for_training(counts: np.ndarray) -> np.ndarray:
    """(N,) bool: spots whose panel genes are all finite and not all zero. Dropped in training only."""
    return np.isfinite(counts).all(axis=1) & (np.nan_to_num(counts).sum(axis=1) > 0)
