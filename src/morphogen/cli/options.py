"""Options that several rooms share: the same thing has the same name everywhere.

An option with several values takes them after one flag (``--test C5 C6``), may be repeated, and takes commas too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from morphogen.core.errors import CheckpointError, ConfigError, nearest

if TYPE_CHECKING:
    from morphogen.core.running.spread import Spread

Inputs = Annotated[
    list[Path],
    Parameter(help="Files, folders of them, or lists (.txt, .csv with an mpp column); several at once."),
]
Model = Annotated[str | None, Parameter(name="--model", help="Model folder, published folder, or hub id.")]
Names = Annotated[
    list[str] | None,
    Parameter(
        consume_multiple=True, negative=(), help="Sections by name, several after one flag or with commas."
    ),
]
Solver = Annotated[
    str | None,
    Parameter(
        name="--solver",
        help="fast (default): a few second-order steps. reference: as published. mean: the expected answer in one "
        "step. Or a solver by name: ddim, ddpm, dpmpp_2m …",
    ),
]
Steps = Annotated[int | None, Parameter(name="--steps", help="Steps of the solver.")]
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
Baselines = Annotated[
    list[str] | None,
    Parameter(
        name="--baseline",
        consume_multiple=True,
        negative=(),
        help="Models of lazyslide-models to score beside, lazyslide:NAME[:PART][=WEIGHTS], several after one flag.",
    ),
]
Others = Annotated[
    list[str] | None,
    Parameter(
        name="--other",
        consume_multiple=True,
        negative=(),
        help="Other methods' images to score beside, NAME=FOLDER, several after one flag.",
    ),
]
TrainingPairs = Annotated[
    Path | None,
    Parameter(
        name="--training", help="Pairs (split train) that a colour map is fitted to, to be scored beside."
    ),
]
SkipBad = Annotated[
    bool,
    Parameter(name="--skip-bad", negative=(), help="Leave unusable pairs out (listed) instead of stopping."),
]
Split = Annotated[str, Parameter(name="--split", help="train, val or test.")]
Stain = Annotated[str | None, Parameter(name="--stain", help="Target stain of a model that makes several.")]
Motion = Annotated[
    Literal["shift", "rigid", "affine"] | None,
    Parameter(
        name="--motion",
        help="shift: whole pixels (re-stained sections). rigid (default): turn and shift (serial sections). "
        "affine: with stretch and shear up to 15 %.",
    ),
]
Mpp = Annotated[float | None, Parameter(name="--mpp", help="µm per pixel, where the file does not say.")]
TissueModel = Annotated[
    str, Parameter(name="--model", help="Tissue model folder or hub id, or a published checkpoint (.ckpt).")
]
Preset = Annotated[
    str | None,
    Parameter(
        name="--solver",
        help="standard (default), fast: fewer steps; reference: as published; or a solver by name.",
    ),
]
TissueSize = Annotated[
    Literal["paper", "base", "small", "tiny"] | None,
    Parameter(
        name="--size",
        help="small: trains on a CPU. base: one GPU. paper: the published 401 M parameters.",
    ),
]
TileMpp = Annotated[
    float | None, Parameter(name="--tile-mpp", help="µm per pixel of the tiles: the model's scale.")
]
GridSide = Annotated[int | None, Parameter(name="--side", help="Rows and columns of the grids learned.")]
GridColumns = Annotated[int | None, Parameter(name="--columns", help="Columns of cells the prior draws.")]
Init = Annotated[
    str | None,
    Parameter(name="--init", help="Weights to start from: cin256-v2, a tissue model, a diffusers folder."),
]
ResnetWeights = Annotated[
    Path | None, Parameter(name="--resnet-weights", help="torchvision resnet50 file: adds PHV.")
]
HoldOut = Annotated[
    list[str] | None,
    Parameter(
        name="--hold-out",
        consume_multiple=True,
        negative=(),
        help="Groups (patients, slides) held out by name.",
    ),
]
Region = Annotated[
    str | None, Parameter(name="--region", help="x,y,width,height in pixels of the full resolution.")
]
ImageFormat = Annotated[
    Literal["tiff", "zarr"],
    Parameter(
        name="--format",
        help="Images of results: tiff (OME-TIFF; PNG of single images) or zarr (OME-Zarr, lossless).",
    ),
]
Updates = Annotated[int | None, Parameter(name="--steps", help="Updates of the weights.")]
TwinCanvas = Annotated[
    Path | None,
    Parameter(name="--canvas", help="A twin to hold against the one slide that is given, and its --region."),
]
TrainingImages = Annotated[
    list[Path] | None,
    Parameter(
        name="--training",
        consume_multiple=True,
        negative=(),
        help="Training images: looks for copies of them.",
    ),
]
UseImages = Annotated[
    list[Path] | None,
    Parameter(
        name="--use",
        consume_multiple=True,
        negative=(),
        help="Test images in a folder per class: do variations of the inputs, labelled likewise, help a classifier "
        "with few labels?",
    ),
]


@dataclass(frozen=True)
class WorkerOptions:
    """Where the inputs of a verb are worked on that makes one result of all of them."""

    workers: Annotated[
        int | None,
        Parameter(
            name="--workers", help="Inputs at a time, each in a process of its own (default: see the verb)."
        ),
    ] = None
    gpus: Annotated[
        list[int] | None,
        Parameter(
            name="--gpus",
            consume_multiple=True,
            negative=(),
            help="Numbers of the GPUs that workers are bound to, one each: --gpus 0 1 2.",
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        Parameter(name="--scheduler", help="Address of a dask cluster that sees the same files."),
    ] = None
    retries: Annotated[
        int, Parameter(name="--retries", help="Tries more after a dead worker or a disk that is away.")
    ] = 1
    stage: Annotated[
        Path | None,
        Parameter(name="--stage", help="Local folder that an input is copied to while it is worked on."),
    ] = None

    def spread(self) -> Spread:
        """Checked, as the engine takes it."""
        from morphogen.core.running.spread import Spread

        return Spread(self.workers, tuple(self.gpus or ()), self.scheduler, None, self.retries, self.stage)


@dataclass(frozen=True)
class SpreadOptions(WorkerOptions):
    """The same for every verb that makes a result of each input; these can be shared out to a job array too."""

    shard: Annotated[
        str | None,
        Parameter(
            name="--shard",
            help="I/N: the part that this process begins with; N processes share one --out (job arrays).",
        ),
    ] = None

    def spread(self) -> Spread:
        """Checked, as the engine takes it."""
        from morphogen.core.running.spread import Shard

        shard = None if self.shard is None else Shard.of(self.shard)
        return replace(WorkerOptions.spread(self), shard=shard)


Spreading = Annotated[SpreadOptions | None, Parameter(name="*")]
Working = Annotated[WorkerOptions | None, Parameter(name="*")]


def spread_of(options: WorkerOptions | None) -> Spread:
    """What the options say; a plain loop where none was given."""
    return (options or WorkerOptions()).spread()


def names(values: Iterable[str] | None) -> list[str] | None:
    """Values given apart or with commas as one list; ``None`` where none was given."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()] or None


def needed(model: str | None, inputs: Sequence[Path], verb: str) -> tuple[str, list[Path]]:
    """``(model, inputs)``; the earlier spelling, with the model before the inputs, is understood."""
    if model is not None:
        return model, list(inputs)
    first, rest = str(inputs[0]), list(inputs[1:])
    known = [Path(first) / name for name in ("morphogen.json", "model_index.json")]
    if rest and (
        any(path.is_file() for path in known) or (not Path(first).exists() and first.count("/") == 1)
    ):
        return first, rest
    raise ConfigError(
        "no model was named", where=verb, fix=f"Write `morphogen {verb} INPUT --model MODEL --out OUT`"
    )


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
