"""Reference prompts: images with a marked thing, and maybe its label, become prompt tokens
(VLP-SAM).

A CLIP or SigLIP model says what every patch of the query and of the references looks like; learned
queries read first the references (any number, their patches in one row), then the picture, and end
as `[1, k, d]` tokens beside or instead of a `<SEG>` token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from reasonseg.errors import InputError
from reasonseg.nn.cache import ImageCache
from reasonseg.nn.clip_features import (
    TEMPLATE,
    attention_map,
    dense_features,
    joint_width,
    last_states,
    mean_words,
    text_features,
)
from reasonseg.nn.features import PatchEncoder
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.pretrained import from_folder, local_folder
from reasonseg.nn.prompt import Prompt
from reasonseg.nn.reference_attention import Attend, pooled, resemblance, sine_positions
from reasonseg.nn.shapes import Bool, Float
from reasonseg.prompters.base import Group, Makes
from reasonseg.structures.markers import reset_tokenizer
from reasonseg.structures.query import common_label
from reasonseg.structures.reference_masks import region

AREA = 0.0005  # added to the area of a mask before its features are averaged, in patches


@dataclass(frozen=True)
class Config:
    """`network` is a transformers `CLIPConfig` or `SiglipConfig` as a dict, `pixels` its
    preprocessing and `tokenizer` a folder, all read only where weights start fresh. `source`
    (folder or hub id) holds a CLIP or SigLIP to start from instead.

    `surgery`: how many of the last blocks have CLIP Surgery's second path. `width_out`: of the
    decoder's tokens (0 asks it). `tower`: `own` encodes images with the CLIP model's vision tower;
    `backbone` with that of the model's backbone, through a projection of `width_tower` to `joint`,
    and `network` is then a `CLIPTextConfig` alone. `labels`: `own` reads them with the CLIP model's
    text tower; `backbone` as the mean of the backbone's word embeddings, and there is no CLIP model
    (only with `tower: backbone`). `masks`: `aligned` puts a reference's mask
    through the same frame as its image; `squash` resizes it whole, as released VLP-SAM does beside
    a centre crop. `prototype`: one more token, made of the features under the masks alone.
    """

    network: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    source: str = ""
    tower: Literal["own", "backbone"] = "own"
    labels: Literal["own", "backbone"] = "own"
    width_tower: int = 0  # of the backbone's tower, where `tower` is `backbone`
    width_words: int = 0  # of the backbone's words, where `labels` is `backbone`
    joint: int = 128  # then the width that patches and labels share
    surgery: int = 0
    queries: int = 50
    heads: int = 4
    width_out: int = 0
    template: str = TEMPLATE
    masks: Literal["aligned", "squash"] = "aligned"
    dropout: float = 0.5
    prototype: bool = False

    def build(self) -> Vlp:
        """A prompter whose learned part is fresh, with the source's CLIP or a fresh one.

        Raises `InputError` for labels of the backbone without its tower.
        """
        if self.labels == "backbone":
            if self.tower == "own":
                raise InputError("references with labels: backbone need tower: backbone as well")
            return Vlp(self, None, None, None)
        if self.source:
            return self.load(local_folder(self.source))
        network = dict(self.network)
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer) if self.tokenizer else None
        if tokenizer is not None:
            network["text_config"] = {
                "vocab_size": len(tokenizer),
                **network.get("text_config", {}),
            }
        clip = AutoModel.from_config(AutoConfig.for_model(**network))
        pixels = None
        if self.tower == "own":
            pixels = ImageProcessor(**{"size": clip.config.vision_config.image_size, **self.pixels})
        return Vlp(self, clip, tokenizer, pixels)

    def load(self, folder: Path, allow: Sequence[str] = (), **options: Any) -> Vlp:
        """A prompter from a folder that `save` wrote, its learned part still fresh; `allow` as
        in `weights.from_folder`.
        """
        kind = AutoConfig.from_pretrained(folder).model_type
        wanted = ("clip", "siglip") if self.tower == "own" else ("clip_text_model",)
        if kind not in wanted:
            raise InputError(
                f"{folder} holds a {kind!r} model; these references take {' or '.join(wanted)}"
            )
        clip = from_folder(AutoModel, folder, allow, **options)
        named = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        tokenizer = AutoTokenizer.from_pretrained(folder) if named else None
        pixels = (
            ImageProcessor.load(folder, size=clip.config.vision_config.image_size)
            if self.tower == "own"
            else None
        )
        return Vlp(self, clip, tokenizer, pixels)

    @classmethod
    def example(cls) -> Config:
        """A tiny one, for tests."""
        vision = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        text = {
            **vision,
            "max_position_embeddings": 16,
            "eos_token_id": 2,
            "bos_token_id": 1,
            "pad_token_id": 0,
        }
        vision |= {"image_size": 64, "patch_size": 8}
        network = {
            "model_type": "clip",
            "projection_dim": 24,
            "vision_config": vision,
            "text_config": text,
        }
        tokenizer = Path(__file__).parents[1] / "assets" / "tiny" / "backbone"
        return cls(network, {"size": 64}, str(tokenizer), surgery=1, queries=5, width_out=16)


class Vlp(nn.Module):
    """Query patches, reference patches and their masks, and a label -> prompt tokens."""

    makes: Makes = "tokens"

    def __init__(self, config: Config, clip: Any, tokenizer: Any, pixels: ImageProcessor | None):
        super().__init__()
        self.config, self.clip, self.tokenizer = config, clip, tokenizer
        self._encoder: PatchEncoder | None = None
        self._words: tuple[Any, ...] = ()  # the backbone, not as a module of this one
        own = config.tower == "own"
        width, joint = config.width_out, joint_width(clip) if own else config.joint
        if not own:
            self.visual_projection = nn.Linear(config.width_tower, joint, bias=False)
            own_words = config.labels == "own"
            words = clip.config.hidden_size if own_words else config.width_words
            self.text_projection = nn.Linear(words, joint, bias=False)
        if config.prototype:
            self.code = nn.Linear(joint, width)
        self.reduce = nn.Linear(joint, width, bias=False)
        self.merge = nn.Linear(3 * width + 2, width, bias=False)
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.see_reference, self.agree = Attend(width, config.heads), Attend(width, config.heads)
        self.see_query, self.settle = Attend(width, config.heads), Attend(width, config.heads)
        if own and pixels is not None:
            vision = clip.config.vision_config
            grid = vision.image_size // vision.patch_size
            self._see(PatchEncoder(clip, self._own_features, pixels, grid, joint))

    def _see(self, encoder: PatchEncoder) -> None:
        self._encoder = encoder
        self.register_buffer(
            "positions", sine_positions(encoder.grid, self.config.width_out), persistent=False
        )

    def bind(self, backbone: Any, decoder: Any) -> None:
        """Borrows the backbone's vision tower where that is the setting. Raises `InputError`
        where it has none that can be used alone.
        """
        if self.config.tower == "own":
            return
        encoder = backbone.patch_encoder if backbone is not None else None
        if backbone is None or encoder is None:
            raise InputError(
                "references with tower: backbone need a backbone whose vision tower can be asked "
                "alone (llava)"
            )
        if encoder.width != self.config.width_tower:
            raise InputError(
                f"references read patches of width {self.config.width_tower}, the tower's have "
                f"{encoder.width}"
            )
        self.tokenizer, self._words = backbone.tokenizer, (backbone,)
        self._see(encoder)
        self.positions = self.positions.to(self.queries.device)

    @property
    def width_out(self) -> int:
        """Width of the tokens it makes."""
        return self.config.width_out

    @property
    def patch_encoder(self) -> PatchEncoder:
        """Whose patch features are read: the CLIP model's own, or those of the backbone's tower."""
        if self._encoder is None:
            raise InputError("references with tower: backbone have not been given a backbone yet")
        return self._encoder

    @property
    def pixels(self) -> ImageProcessor:
        """How images enter."""
        return self.patch_encoder.image_processor

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.patch_encoder.grid

    def _own_features(self, images: list[np.ndarray]) -> torch.Tensor:
        weight, pixels = self.reduce.weight, self.pixels
        return dense_features(
            self.clip, pixels.batch(images, weight.device, weight.dtype), self.config.surgery
        )

    def placed(self, features: Float[Tensor, "*b c"]) -> Float[Tensor, "*b e"]:
        """Unit features in the space of the labels."""
        if self.config.tower == "own":
            return features
        return F.normalize(
            self.visual_projection(features.to(self.reduce.weight.dtype)).float(), dim=-1
        )

    def prompts(
        self, groups: Sequence[Group], cache: ImageCache, owners: Sequence[int] | None = None
    ) -> list[Prompt]:
        """One prompt `[1, k, d]` for each (picture, references of one thing); as many references
        go through together.
        """
        pictures = [image for image, _ in groups] + [r.image for _, group in groups for r in group]
        encoder = self.patch_encoder
        seen = self.placed(cache([encoder.module], pictures, encoder.encode, self.pixels.size))
        query, shown = (
            seen[: len(groups)],
            list(seen[len(groups) :].split([len(g) for _, g in groups])),
        )
        text = self.read([common_label(group) for _, group in groups])
        prompts: dict[int, Prompt] = {}
        for count in {len(group) for _, group in groups}:
            mine = [i for i, (_, group) in enumerate(groups) if len(group) == count]
            masks = torch.stack(
                [torch.stack([self.frame(region(r)) for r in groups[i][1]]) for i in mine]
            )
            weights = torch.tensor(
                [[r.weight for r in groups[i][1]] for i in mine], device=query.device
            )
            weights = weights / weights.sum(1, keepdim=True)
            tokens = self(
                query[mine],
                torch.stack([shown[i] for i in mine]),
                masks.to(query),
                text[mine],
                weights,
            ).tokens
            prompts |= {i: Prompt(tokens[j : j + 1]) for j, i in enumerate(mine)}
        return [prompts[i] for i in range(len(groups))]

    def read(self, labels: Sequence[str | None]) -> Float[Tensor, "n c"]:
        """Unit features `[n, c]` of labels; zeros for None. Raises `InputError` where the model
        came without a tokenizer.
        """
        stripped = [(label or "").strip() for label in labels]
        named = sorted(set(filter(None, stripped)))
        features = self.reduce.weight.new_zeros(
            len(labels), self.reduce.in_features, dtype=torch.float32
        )
        if not named:
            return features
        if self.tokenizer is None:
            raise InputError(
                "this model came without its text tokenizer and reads no labels; leave the label "
                "out"
            )
        known = self.texts(named)
        rows = [i for i, label in enumerate(stripped) if label]
        index = torch.tensor(rows, device=features.device)
        return features.index_copy(0, index, known[[named.index(stripped[i]) for i in rows]])

    def texts(self, labels: list[str]) -> Float[Tensor, "n c"]:
        """Unit features `[n, c]` of labels."""
        if self.config.tower == "own":
            return text_features(self.clip, self.tokenizer, labels, self.config.template)
        texts = [self.config.template.format(label) for label in labels]
        weight = self.text_projection.weight
        if self.config.labels == "backbone":
            words = self._words[0].model.get_input_embeddings().weight
            states = mean_words(words.detach(), self.tokenizer, texts).to(weight)
        else:
            states = last_states(self.clip, self.tokenizer, texts, weight.device)
        return F.normalize(self.text_projection(states).float(), dim=-1)

    def frame(self, mask: Bool[np.ndarray, "h w"]) -> Float[Tensor, "s s"]:
        """A reference's mask `[h, w]` as the learned part reads it: 0 or 1 at three times the
        grid, `[3g, 3g]`.
        """
        framed = self.pixels.mask(mask, squash=self.config.masks == "squash")
        return F.interpolate(
            framed[None, None].float(), (3 * self.grid, 3 * self.grid), mode="nearest"
        )[0, 0]

    def forward(
        self,
        query: Float[Tensor, "b t c"],
        references: Float[Tensor, "b r t c"],
        masks: Float[Tensor, "b r s s"],
        text: Float[Tensor, "b c"],
        weights: Float[Tensor, "b r"] | None = None,
    ) -> Prompt:
        """Tokens `[b, k, d]` from patches `[b, t, c]` of the picture and `[b, r, t, c]` of r
        references.

        `masks` `[b, r, 3g, 3g]`, `text` `[b, c]`; `weights` `[b, r]` (None: even) are the
        references' shares of the prototype.
        """
        weights = (
            masks.new_full(masks.shape[:2], 1 / masks.shape[1]) if weights is None else weights
        )
        pseudo = resemblance(query, references, masks)
        shares = F.interpolate(
            masks, (self.grid, self.grid), mode="bilinear", align_corners=False
        ).flatten(2)
        seen, shown = self.reduced(query), self.reduced(references)
        said = self.reduced(text[:, None].to(query))  # [b, 1, d]
        prototype = pooled(shown, shares, weights, AREA)
        maps = (
            torch.stack([attention_map(r, text) for r in references.unbind(1)], 1)
            if references.shape[1]
            else shares
        )
        supporting = torch.cat(
            [
                self.merged(s, prototype, said, m, a)
                for s, m, a in zip(shown.unbind(1), shares.unbind(1), maps.unbind(1), strict=True)
            ],
            1,
        )
        picture = self.merged(seen, prototype, said, pseudo, attention_map(query, text))
        states = self.queries.expand(len(query), -1, -1).to(picture)
        positions = self.positions.to(picture)
        states = self.agree(
            self.see_reference(states, supporting, positions.repeat(references.shape[1], 1))
        )
        tokens = self.settle(self.see_query(states, picture, positions))
        if self.config.prototype:
            code = self.code(pooled(references, shares, weights, AREA).to(tokens))
            tokens = torch.cat([tokens, code], 1)
        return Prompt(tokens)

    def reduced(self, features: torch.Tensor) -> torch.Tensor:
        """Features at the prompt's width; in training whole channels are dropped (`[..., t, c]`,
        the same for all t).
        """
        features = F.relu(self.reduce(features.to(self.reduce.weight.dtype)))
        if self.training and self.config.dropout:
            kept = torch.rand_like(features[..., :1, :]) >= self.config.dropout
            features = features * kept / (1 - self.config.dropout)
        return features

    def merged(self, features, prototype, said, mask, attention) -> torch.Tensor:
        """Patches `[b, t, d]` that also know prototype, label, and how much each is the thing."""
        parts = [features, prototype.expand_as(features), said.expand_as(features)]
        parts += [10 * part[..., None].to(features) for part in (mask, attention)]
        return F.relu(self.merge(torch.cat(parts, -1)))

    def save(self, folder: Path) -> None:
        """Writes a transformers folder with tokenizer and preprocessing; the learned part is
        `learned()`.
        """
        if self.clip is None:
            return
        self.clip.save_pretrained(folder)
        if self.config.tower == "backbone":
            return
        if self.tokenizer is not None:
            reset_tokenizer(self.tokenizer).save_pretrained(folder)
        self.pixels.save(folder)

    def learned(self) -> dict[str, torch.Tensor]:
        """Weights of everything but the CLIP model."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("clip.")}
