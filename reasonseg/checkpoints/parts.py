"""The parts of one model, fitted together: what every checkpoint is read into, and what every
segmenter is made of.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from reasonseg.backbones.base import Backbone
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind
from reasonseg.decoders.base import Decoder
from reasonseg.errors import InputError
from reasonseg.nn.cache import version_of
from reasonseg.prompters.base import Prompter, ReferencePrompter

HASHED = 2**30  # bytes of weights that are hashed in about half a second


class Parts(nn.Module):
    """A backbone that speaks, prompters that say what to segment, a decoder that draws.

    `backbone` and `prompter` are None in a model that takes examples only, `references` in one that
    takes words only. `refiner` is a second decoder that sharpens what a decoder without edges of
    its own (SegGPT) paints. Raises `InputError` where parts do not fit one another.
    """

    backbone: Backbone | None
    prompter: Prompter | None
    decoder: Decoder
    references: ReferencePrompter | None
    refiner: Decoder | None

    def __init__(
        self,
        settings: ModelSettings,
        backbone: Backbone | None,
        prompter: Prompter | None,
        decoder: Decoder,
        references: ReferencePrompter | None = None,
        refiner: Decoder | None = None,
    ):
        super().__init__()
        self.settings, self.backbone, self.prompter, self.decoder = (
            settings,
            backbone,
            prompter,
            decoder,
        )
        self.references, self.refiner = references, refiner
        # the keywords of `from_pretrained`, where it came from there
        self.origin: dict[str, Any] | None = None
        self._known: tuple[tuple, str] | None = None  # the hash of its weights
        for name, part in (("prompter", prompter), ("references", references)):
            if part is not None and part.makes not in decoder.takes:
                raise InputError(
                    f"{name} makes {part.makes}, the decoder takes {', '.join(decoder.takes)}"
                )
            if part is not None and part.makes == "tokens" and part.width_out != decoder.width:
                raise InputError(
                    f"{name} makes tokens of width {part.width_out}, the decoder takes "
                    f"{decoder.width}"
                )
        if prompter is not None and backbone is not None and prompter.width_in != backbone.width:
            raise InputError(
                f"the prompter reads states of width {prompter.width_in}, the backbone has "
                f"{backbone.width}"
            )
        if references is not None:
            references.bind(backbone, decoder)

    def language(self) -> tuple[Backbone, Prompter]:
        """The backbone and its prompter. Raises `InputError` in a model that takes examples
        only.
        """
        if self.backbone is None or self.prompter is None:
            raise InputError(
                "this model takes examples only and reads no words; take one with a language model"
            )
        return self.backbone, self.prompter

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.decoder.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Its name and a SHA-256 hash of its settings and of all bytes of its parameters.

        For a model of more than `HASHED` bytes it is computed again only where a parameter was
        written since (`version_of`).
        """
        small = sum(p.nbytes for p in self.parameters()) <= HASHED
        version = () if small else (version_of(self), repr(self.settings))
        if small or self._known is None or self._known[0] != version:
            digest = hashlib.sha256(repr(self.settings).encode())
            for name, value in self.named_parameters():
                digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
                digest.update(flat.cpu().numpy().data)
            self._known = version, digest.hexdigest()[:12]
        return f"{self.settings.about.get('name', 'model')}-{self._known[1]}"


def build_parts(settings: ModelSettings) -> Parts:
    """Parts with fresh weights. Raises `InputError` where they do not fit one another."""
    decoder = settings.decoder.config.build()
    backbone = settings.backbone.config.build() if settings.backbone else None
    return with_prompters(settings, backbone, decoder)


def with_prompters(settings: ModelSettings, backbone: Backbone | None, decoder: Decoder) -> Parts:
    """Parts of a backbone and a decoder, with fresh prompters that fit them.

    Raises `InputError` where they do not fit one another.
    """
    kinds = {
        name: fitted(getattr(settings, name), backbone, decoder)
        for name in ("prompter", "references")
    }
    built = {name: kind.config.build() if kind else None for name, kind in kinds.items()}
    return Parts(
        replace(settings, **kinds), backbone, built["prompter"], decoder, built["references"]
    )


def fitted(kind: Kind | None, backbone: Backbone | None, decoder: Decoder) -> Kind | None:
    """A prompter's settings with the widths that it leaves to its neighbours (0) taken from
    them.
    """
    if kind is None:
        return None
    encoder = backbone.patch_encoder if backbone is not None else None
    widths = {
        "width_in": backbone.width if backbone is not None else 0,
        "width_tower": encoder.width if encoder is not None else 0,
        "width_words": backbone.width if backbone is not None else 0,
        "width_out": decoder.width,
    }
    return Kind(
        kind.kind,
        replace(
            kind.config, **{k: v for k, v in widths.items() if getattr(kind.config, k, None) == 0}
        ),
    )
