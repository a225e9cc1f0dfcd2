"""What the verbs of ``morphogen stain`` share: their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from morphogen.core.errors import CheckpointError, nearest

Data = Annotated[
    Path,
    Parameter(
        help="Pairs: a folder with TrainValAB/trainA (H&E) and trainB (IHC), a folder of such folders by stain, "
        "or a CSV with the columns he,ihc[,stain,patient,split,affine]; its files may be whole slides."
    ),
]
Out = Annotated[Path, Parameter(name="--out", help="Folder of the results.")]
Encoder = Annotated[
    str | None, Parameter(name="--encoder", help="Encoder by name (`morphogen doctor` lists them).")
]
Weights = Annotated[Path | None, Parameter(name="--weights", help="Weights of the encoder on disk.")]
SkipBad = Annotated[
    bool,
    Parameter(name="--skip-bad", negative=(), help="Leave unusable pairs out (listed) instead of stopping."),
]
Split = Annotated[str, Parameter(name="--split", help="train, val or test.")]
Stain = Annotated[str | None, Parameter(name="--stain", help="Target stain of a model that makes several.")]
Mpp = Annotated[float | None, Parameter(name="--mpp", help="µm per pixel, where the file does not say.")]


def started(start: str | None) -> str | None:
    """``demo`` as the packaged model's folder; what looks like a slip of it is said, not sought on a hub."""
    if start is None or Path(start).exists():
        return start
    if start == "demo":
        from morphogen.demo.workspace import stain_model

        return str(stain_model())
    if hint := nearest(start, ["demo"]):
        raise CheckpointError(
            f"no such folder.{hint}", where=f"--start {start}", fix="Give a model folder or a hub id"
        )
    return start
