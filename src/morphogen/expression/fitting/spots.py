"""What the training tasks share: rows as a dataset, held-out tissue blocks, noise levels of a validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.files import content_hash
from morphogen.core.seeds import numpy_generator
from morphogen.diffusion import Schedule
from morphogen.expression.sections.tables import SectionTable, inner_folds

VALIDATION_TIMES = 8  # noise levels at which every held-out spot is scored


def data_hash(tables: Sequence[SectionTable]) -> str:
    """Identity of what was trained on: names, barcodes, embeddings, targets."""
    return content_hash(*[(t.section, list(t.barcodes), t.embedding, t.y) for t in tables])[:16]


def held_out_blocks(tables: Sequence[SectionTable], share: float, seed: int) -> list[np.ndarray]:
    """(N,) bool per table: about ``share`` of the tissue blocks (4 pitches wide) of every section."""
    out = []
    for table in tables:
        parts = max(2, round(1 / share)) if share > 0 else 0
        if not parts:
            out.append(np.zeros(len(table), dtype=bool))
            continue
        folds = inner_folds([table], parts=parts)[0]
        out.append(folds == numpy_generator(seed, "validation", table.section).integers(0, parts))
    return out


class Spots(Dataset):
    """Rows of the training spots; what belongs to a row is gathered in the loss, on the device."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(rows).long()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"row": self.rows[i]}

    def cut(self, places: Sequence[int]) -> dict[str, Tensor]:
        """The batch of some items, at once."""
        return {"row": self.rows[torch.tensor(places)]}


def noise_levels(schedule: Schedule) -> list[float]:
    if schedule.kind == "flow":
        return [(i + 0.5) / VALIDATION_TIMES for i in range(VALIDATION_TIMES)]
    return [float(int((i + 0.5) / VALIDATION_TIMES * schedule.T)) for i in range(VALIDATION_TIMES)]
