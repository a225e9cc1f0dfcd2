"""What can be set about spatial gene expression: data, panel, model recipe, prediction, evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from morphogen.core.config import Config


class DataConfig(Config):
    """How measured sections are read and checked."""

    technology: Literal["auto", "ST", "Visium"] = Field(
        "auto",
        description="Array the spots come from; decides the expected spot pitch. auto = from the files.",
    )
    pitch_um: float | None = Field(
        None, gt=0, description="Centre-to-centre distance of spots in µm. null = 200 (ST) or 100 (Visium)."
    )
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel of the images. null = from the file, else from the spot pitch."
    )
    trust_mpp: bool = Field(
        False, description="Go on although µm/px and the spot pitch contradict each other by more than 30 %."
    )
    coordinate_scale: float = Field(
        1.0,
        gt=0,
        description="Factor from the coordinates in the table to pixels of the image (reduced images).",
    )
    layer: str | None = Field(None, description="AnnData layer that holds the counts. null = X.")
    values: Literal["counts", "log1p"] = Field(
        "counts",
        description="What the matrix holds. log1p: it is undone and the values are taken as they are.",
    )
    images: str | None = Field(
        None,
        description="Folder (or one file) of the H&E images, named like the sections. null = where usual.",
    )
    patients: str | None = Field(
        None, description="CSV with columns section,patient. null = from metadata, where it says so."
    )
    patient_pattern: str | None = Field(
        None,
        description="Regular expression on the section's name whose match is the patient, e.g. '^[A-Z]'.",
    )


class PrepareConfig(Config):
    """What is computed from a section's image: embeddings per spot and who is next to whom."""

    data: DataConfig = Field(default_factory=DataConfig, description="How sections are read.")
    encoder: str = Field("texture", description="Encoder by name, as listed by `morphogen doctor`.")
    weights: str | None = Field(None, description="Weights of the encoder on disk, for gated encoders.")
    field: Literal["112um", "spot"] = Field(
        "112um",
        description="112um: a field of 112 µm. spot: Stem's crop, max(224, spot diameter) level-0 px.",
    )
    field_px: int = Field(224, gt=0, description="Side in pixels to which a field is resampled.")
    orientations: Literal["auto", "1", "8"] = Field(
        "auto",
        description="Embeddings stored per spot: identity, or all 8 flips and rotations. auto = 8 unless the "
        "encoder is invariant to them.",
    )
    near: int = Field(9, gt=0, description="Nearest spots per spot, itself included (HisDiff's neighbours).")
    region: int = Field(49, gt=0, description="Nearest spots that make its region, itself included.")
    batch_size: int = Field(64, gt=0, description="Fields cropped and encoded at a time.")


class PanelConfig(Config):
    """Which genes are modelled."""

    size: int = Field(200, gt=0, description="Number of genes.")
    genes: str | None = Field(None, description="Text file with one gene per line, used as it is.")
    method: Literal["training", "hmhvg"] = Field(
        "training",
        description="training: highly variable, high mean and high variance on the TRAINING sections, exactly "
        "`size` genes. hmhvg: Stem's published recipe with `size` as its cut n.",
    )
    highly_variable: int = Field(2000, gt=0, description="Highly variable genes taken per section.")
