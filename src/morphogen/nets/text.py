"""Text as context: CLIP's tokenizer and text transformer, from a local diffusers pipeline folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from morphogen.core.errors import CheckpointError
from morphogen.nets.folders import component

if TYPE_CHECKING:  # takes seconds: where one is read
    from transformers import CLIPTextModel, CLIPTokenizer


class TextEncoder(nn.Module):
    """Prompts → states of CLIP's text transformer, as Stable Diffusion takes them: (B, 77, width), padded."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.model.config.hidden_size

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """(B, 77) ids; longer prompts are cut."""
        batch = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return batch.input_ids

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Tensor:
        """(B, 77, width), the last hidden states."""
        ids = self.token_ids(prompts).to(self.model.device)
        return self.model(ids).last_hidden_state


def load_text_encoder(folder: Path | str, dtype: torch.dtype = torch.float32) -> TextEncoder:
    """Read ``tokenizer/`` and ``text_encoder/`` of a pipeline folder."""
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = Path(folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:
        line = " ".join(str(error).split())
        what = f"the tokenizer does not load ({line[:200]})"
        raise CheckpointError(what, where=folder / "tokenizer") from error
    return TextEncoder(tokenizer, component(folder / "text_encoder", CLIPTextModel, dtype))
