"""A speaker on this machine: any image-text-to-text model of transformers, through its own
processor.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from reasonseg.backbones.speakers.base import Reply, checked_request, shaped
from reasonseg.backbones.speakers.places.family import Family, family_of, framed
from reasonseg.backbones.speakers.places.frames import Seen
from reasonseg.backbones.speakers.probing import with_probe
from reasonseg.errors import InputError
from reasonseg.nn.pretrained import local_folder

TOGETHER = 8  # questions of one batch
KEPT = 8  # pictures whose vision features are kept


@dataclass(frozen=True)
class Config:
    """`source`: a folder or a hub id. `family`, `frame`, `order`: how it speaks of places, where
    its name and type do not say it. `square`: pictures are padded to squares.
    """

    source: str = ""
    family: str = ""
    frame: str = ""
    order: str = ""
    square: bool = False

    def build(self, device: Any = None, dtype: Any = None) -> LocalSpeaker:
        """Loads the model. Raises `InputError` where it has no vision, or cannot be loaded."""
        folder = local_folder(self.source)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        precision = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
        try:
            processor = AutoProcessor.from_pretrained(folder)
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=precision)
        except (ValueError, OSError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0][:160]
            raise InputError(
                f"{self.source} is no model that reads pictures and words ({reason}); name a "
                "vision-language model"
            ) from None
        if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
            raise InputError(f"{self.source} reads no pictures; name a vision-language model")
        return LocalSpeaker(model.to(place).eval(), processor, self)


class LocalSpeaker:
    """A transformers model that answers. What it sees of a picture is kept for further calls."""

    def __init__(self, model: Any, processor: Any, config: Config):
        self.model, self.processor, self.config = model, processor, config
        self.name = config.source or str(model.config.model_type)
        named = Path(config.source).name if config.source else ""
        family = family_of(named, model.config.model_type, config.family)
        self.family: Family = with_probe(framed(family, config.frame, config.order), self.name)
        self.looks = 0  # pictures whose features were computed
        self._keep_features()

    @property
    def fingerprint(self) -> str:
        """The model's name, the hash of its settings, and how it is asked."""
        told = hashlib.sha256(repr(self.model.config.to_dict()).encode()).hexdigest()[:12]
        return f"{self.name}-{told}-{self.family.name}-{self.family.frame}-{self.family.order}"

    def shape(self, image: np.ndarray) -> tuple[np.ndarray, Seen]:
        """As `Speaker.shape`."""
        return shaped(image, self.family, self.config.square)

    @torch.inference_mode()
    def say(
        self,
        pictures: Sequence[np.ndarray],
        text: str,
        *,
        limit: int = 512,
        temperature: float = 0.0,
        plain: bool = False,
    ) -> Reply:
        """As `Speaker.say`."""
        return self._said([(pictures, text)], limit, temperature, plain)[0]

    @torch.inference_mode()
    def say_all(
        self,
        asked: Sequence[tuple[Sequence[np.ndarray], str]],
        *,
        limit: int = 512,
        temperature: float = 0.0,
        plain: bool = False,
    ) -> list[Reply]:
        """Answers several (pictures, text), `TOGETHER` in one batch, with the options of `say`.

        One by one where the model takes its request without a chat template, or draws at random.
        """
        step = 1 if plain or temperature or not self._templated else TOGETHER
        replies: list[Reply] = []
        for start in range(0, len(asked), step):
            replies += self._said(asked[start : start + step], limit, temperature, plain)
        return replies

    def _said(
        self,
        asked: Sequence[tuple[Sequence[np.ndarray], str]],
        limit: int,
        temperature: float,
        plain: bool,
    ) -> list[Reply]:
        """What is generated for each (pictures, text), in one batch."""
        inputs = self._inputs(asked, plain)
        length = inputs["input_ids"].shape[1]
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
        made = self.model.generate(
            **inputs, max_new_tokens=limit, **({"do_sample": False} | sampling)
        )
        whole = bool(getattr(self.model.config, "is_encoder_decoder", False))
        padding = self.processor.tokenizer.pad_token_id
        count, first = sum(len(pictures) for pictures, _ in asked), 0
        replies = []
        for row, mask, (pictures, _) in zip(made, inputs["attention_mask"], asked, strict=True):
            new = row if whole else row[length:]
            if len(asked) > 1 and padding is not None:  # a row may end before the longest
                told = (new != padding).nonzero()
                new = new[: int(told.max()) + 1] if len(told) else new[:0]
            said = self.processor.tokenizer.decode(new, skip_special_tokens=not self.family.special)
            replies.append(Reply(said, self._fed(inputs, first, count), int(mask.sum()), len(new)))
            first += len(pictures)
        return replies

    @property
    def _templated(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    def _inputs(
        self, asked: Sequence[tuple[Sequence[np.ndarray], str]], plain: bool
    ) -> dict[str, Any]:
        texts, images = [], []
        for pictures, text in asked:
            checked_request(text)
            if not plain and self._templated:
                content: list[dict] = [{"type": "image"} for _ in pictures]
                content.append({"type": "text", "text": text})
                text = self.processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
            texts.append(text)
            images.append([Image.fromarray(p) for p in pictures])
        shown: Any = images if len(asked) > 1 else images[0] or None
        padding = {"padding": True, "padding_side": "left"} if len(asked) > 1 else {}
        given = self.processor(text=texts, images=shown, return_tensors="pt", **padding)
        weight = next(self.model.parameters())
        return {
            k: v.to(weight.device, weight.dtype if v.is_floating_point() else v.dtype)
            for k, v in given.items()
            if isinstance(v, torch.Tensor)
        }

    def _fed(self, inputs: dict[str, Any], which: int, count: int) -> tuple[int, int] | None:
        """The size (height, width) of picture `which` of `count` as the encoder saw it, read off
        its input.
        """
        grid = inputs.get("image_grid_thw")
        if grid is not None:
            patch = self.processor.image_processor.patch_size
            return int(grid[which, 1]) * patch, int(grid[which, 2]) * patch
        pixels = inputs.get("pixel_values")
        if pixels is not None and pixels.ndim == 4 and len(pixels) == count:
            return int(pixels.shape[-2]), int(pixels.shape[-1])
        return None

    def _keep_features(self) -> None:
        """Lets the model keep its vision features, by the pixels that it is given."""
        inner = self.model.model if hasattr(self.model, "model") else self.model
        name = "get_image_features"
        if not hasattr(inner, name):
            inner = self.model
        if hasattr(inner, name):
            setattr(inner, name, self._kept(getattr(inner, name)))

    def _kept(self, compute: Callable) -> Callable:
        kept: OrderedDict[bytes, Any] = OrderedDict()

        @wraps(compute)  # transformers looks at its signature
        def features(pixel_values: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            digest = hashlib.sha256()
            for value in (pixel_values, *arguments, *options.values()):
                if isinstance(value, torch.Tensor):
                    flat = value.detach().float().cpu().contiguous().numpy()
                    digest.update(f"{tuple(value.shape)}".encode() + flat.tobytes())
            key = digest.digest()
            if key not in kept:
                self.looks += 1
                kept[key] = compute(pixel_values, *arguments, **options)
                if len(kept) > KEPT:
                    kept.popitem(last=False)
            kept.move_to_end(key)
            return kept[key]

        return features
