"""The base of the pipeline objects: what every task's model can do, written once.

A room's model derives from :class:`Pretrained`, names its ``kind`` and says three things: its components, what else is
written beside them, and how it is put together from a folder that was read::

    class Segmenter(Pretrained):
        kind = "segmenter"

        def components(self):
            return {"network": self.network}

        def saved(self):
            return {"preprocessing": {"crop": self.crop, "mpp": self.mpp}}

        @classmethod
        def restored(cls, read):
            config = read.settings(SegmenterConfig)
            network = read.restore(build_network(config), "network")
            return cls(network, config, **read.facts["preprocessing"])
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from morphogen.checkpoints import load_model, resolve_folder, save_model
from morphogen.checkpoints.folder import ModelFolder
from morphogen.core.config import Config
from morphogen.core.devices import compiling_pays, devices_together, resolve_device, tolerate_failures
from morphogen.core.errors import InputError
from morphogen.core.files import content_hash
from morphogen.core.provenance import versions
from morphogen.core.running.threads import lanes
from morphogen.core.running.transfers import sent

log = logging.getLogger("morphogen.tasks")


class Pretrained(ABC):
    """A model of components that is moved, compiled, hashed, saved and loaded as one.

    Attributes
    ----------
    kind:
        What its folder is, for the room that reads it.
    config:
        What the model is; saved with it.
    network:
        The module that learns, and that sampling calls.
    multiple:
        Sides of a crop are multiples of this many pixels.
    """

    kind: ClassVar[str]
    config: Config
    network: Any
    others: Sequence[Self] = ()  # the same model on further devices
    _compiled = False
    _when_it_pays = False

    @abstractmethod
    def components(self) -> Mapping[str, Any]:
        """All that is moved, hashed and saved, by name; ``None`` for what this model does not have."""

    @abstractmethod
    def saved(self) -> dict[str, Any]:
        """Facts written beside config and components: anything JSON can hold. ``documents`` are more JSON files by
        name."""

    def modules(self) -> Mapping[str, Any]:
        """What is written: folders of what has ``save_pretrained``, NAME.safetensors of other modules."""
        return {name: part for name, part in self.components().items() if part is not None}

    @classmethod
    @abstractmethod
    def restored(cls, read: ModelFolder, **options: Any) -> Self:
        """The model of a folder of this kind, on the CPU; ``options`` are those of :meth:`from_pretrained`."""

    @property
    def multiple(self) -> int:
        return 1

    # -- where it is and how it runs
    # -----------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(chain(self.network.parameters(), self.network.buffers())).device

    @property
    def lanes(self) -> int:
        """Batches that go through the network beside one another (:func:`~morphogen.core.running.threads.lanes`)."""
        return (
            1
            if self._compiled
            else lanes(self.device, sum(each.numel() for each in self.network.parameters()))
        )

    def to(self, device: str | torch.device) -> Self:
        """Move every component; convolutions of the network are laid out channels last."""
        where = resolve_device(device)
        for part in self.components().values():
            if part is not None:
                part.to(where)
        if where.type in ("cpu", "cuda"):  # vector units and tensor cores read channels last
            self.network.to(memory_format=torch.channels_last)
        return self

    def compile(self, wanted: bool | None = True) -> Self:
        """Run the network through torch.compile from now on, and those of models inside this one; with ``None`` once
        the work that :meth:`expect` is told of pays for it."""
        self._when_it_pays = wanted is None
        if wanted and not self._compiled:
            self._compiled = True
            self.compile_networks()
        for other in self.others:
            other.compile(wanted)
        return self

    def compile_networks(self) -> None:
        """What :meth:`compile` does."""
        self.network.compile()
        for part in self.components().values():
            if isinstance(part, Pretrained):
                part.compile()

    def expect(self, calls: float) -> None:
        """``calls`` of the network with a full batch each are ahead: by the rule of
        :func:`~morphogen.core.devices.compiling_pays` it is compiled, where that is left to it."""
        if self._when_it_pays and not self._compiled and compiling_pays(self.device, calls):
            tolerate_failures()
            log.info("the network is compiled for the %d calls ahead", calls)
            self.compile()

    # -- what it is
    # ----------------------------------------------------------------------------------------------------

    @cached_property
    def identity(self) -> str:
        """Hash of the weights and of what the model is: part of every result."""
        return content_hash(*self.hashed())

    def hashed(self) -> tuple[Any, ...]:
        """What :attr:`identity` is a hash of."""
        states = [dict(part.state_dict()) for part in self.components().values() if part is not None]
        return (self.config.to_dict(), *states)

    # -- folders
    # -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, device: str | torch.device = "cpu", **options: Any
    ) -> Self:
        """Load a folder written by :meth:`save_pretrained`, or a hub id ``owner/name``, onto a device."""
        return cls.restored(load_model(resolve_folder(folder), cls.kind), **options).to(device)

    @classmethod
    def on_all(cls, folder: Path | str, device: str | torch.device = "auto", **options: Any) -> Self:
        """:meth:`from_pretrained` on all devices that work on an item is shared over
        (:func:`~morphogen.core.devices.devices_together`); ``others`` are those of the further ones."""
        first, *others = (
            cls.from_pretrained(folder, device=where, **options) for where in devices_together(device)
        )
        first.others = others
        return first

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write config, components, facts and library versions as one folder, whole or not at all."""
        return save_model(
            folder, self.modules(), self.config, kind=self.kind, versions=versions(), **self.saved()
        )

    # -- images
    # --------------------------------------------------------------------------------------------------------

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → (B, 3, H, W) in −1…1 on the model's device; :class:`InputError` for other images, and
        for sides that are no multiples of :attr:`multiple`."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"images must be uint8 (B, H, W, 3), not {str(images.dtype).removeprefix('torch.')} "
                f"{tuple(images.shape)}"
            )
        if images.shape[1] % self.multiple or images.shape[2] % self.multiple:
            raise InputError(
                f"crops of {images.shape[2]} × {images.shape[1]} px do not fit the network",
                fix=f"Use sides that are multiples of {self.multiple}, or cut the image into windows",
            )
        return sent(images, self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
