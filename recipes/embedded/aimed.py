"""The language stage of the embedded models, with targets for the prompt of every `<SEG>`.

Masks are drawn for a share of each batch only; every `<SEG>` has a code as its target.
"""

from __future__ import annotations

import torch
from torch import nn

from reasonseg.errors import InputError
from reasonseg.nn.losses import mask_losses
from reasonseg.nn.prompt import Prompt
from reasonseg.segmenters.base import Segmenter
from reasonseg.segmenters.prompting import distinct
from reasonseg.segmenters.supervision import target_prompts
from reasonseg.structures.sample import Sample
from reasonseg.training.objectives.base import (
    box_in,
    click,
    framed_masks,
    mean_overlap,
    tower_features,
)
from reasonseg.training.objectives.language import Language
from recipes.embedded.codes import Coder, patch_shares

TEMPERATURE, POINTING = 0.1, 0.3  # of `Aimed.miss`


class Aimed(Language):
    """True answers through the whole model, for backbone `llava`.

    - `aim`: weight of a loss that moves the prompt of each `<SEG>` to the code of its mask. It
      needs a coder from the `codes` stage.
    - `drawn`: share of a batch whose masks are drawn and compared; the rest has the `aim` loss
      only.
    - `placed`: this share of the drawn masks also gets a box beside its `<SEG>`; an equal share
      gets a click that corrects the mask drawn without it; an equal share gets a box or a click
      alone.

    Raises `InputError` for a backbone whose vision tower cannot be run alone.
    """

    needs = ("coder",)

    def __init__(
        self,
        segmenter: Segmenter,
        coder: Coder,
        aim: float = 1.0,
        drawn: float = 1.0,
        placed: float = 0.0,
    ):
        super().__init__(segmenter)
        backbone, _ = segmenter.language()
        if backbone.patch_encoder is None:
            raise InputError(
                "objective aimed needs a backbone whose vision tower can be run alone; llava is one"
            )
        self.aim, self.drawn, self.placed, self.coder = aim, drawn, placed, coder
        self.overlap = torch.zeros(())  # mean IoU of the last drawn masks, for the log

    def counts(self, batch: dict) -> dict[str, int]:
        """Empty: the losses are averaged over the drawn part of a batch."""
        return {}

    def forward(self, batch: dict, counts: dict | None = None) -> dict[str, torch.Tensor]:
        samples, segmenter = batch["samples"], self.segmenter
        worded = [i for i, s in enumerate(samples) if s.query.text.strip()]
        features = self.looked(samples)
        images, of_image = distinct([s.query.image for s in samples])
        patches = torch.stack([features[id(image)] for image in images])
        asked = [samples[i] for i in worded]
        shown, _ = distinct([s.query.image for s in asked])
        seen = segmenter.backbone.model.model.multi_modal_projector(
            torch.stack([features[id(image)] for image in shown])
        )
        regions = segmenter.backbone.regions(
            [s.query for s in asked], lambda others: [features[id(image)] for image in others]
        )
        options = {"features": seen, "regions": regions, "given": self.given(asked)}
        output = segmenter.backbone.teach(asked, segmenter.prompter.config.at, **options)
        tokens = segmenter.prompter(output.states).tokens[:, 0]
        truths = [torch.from_numpy(s.truth.masks).to(segmenter.device) for s in samples]
        places = torch.tensor(
            [of_image[worded[k]] for k in output.sample_index], device=segmenter.device
        )
        parts = {"text": output.cross_entropy / max(output.tokens, 1)}
        parts["aim"] = self.miss(tokens, patches.detach()[places], [truths[i] for i in worded])
        if self.drawn:
            count = max(int(len(samples) * self.drawn), 1)
            prompts, sample_index = target_prompts(segmenter, samples, output, Memory(features))
            kept = [m for m, owner in enumerate(sample_index) if owner < count]
            encoded = segmenter.decoder.encode(images[: 1 + max(of_image[:count])])
            where = torch.tensor([of_image[sample_index[m]] for m in kept], device=segmenter.device)
            parts |= self.draw(
                encoded, where, [prompts[m] for m in kept], torch.cat(truths[:count])
            )
        weights = segmenter.settings.loss
        loss = sum((self.aim if k == "aim" else getattr(weights, k)) * v for k, v in parts.items())
        logged = {
            "words": output.correct / max(output.tokens, 1),
            **({"giou": self.overlap} if self.drawn else {}),
        }
        return {"loss": loss, **{k: v.detach() for k, v in parts.items()}, **logged}

    def given(self, samples: list[Sample]) -> list[int] | None:
        """The number of tokens of each answer that are input and not trained; None: none."""
        return None

    def looked(self, samples: list[Sample]) -> dict[int, torch.Tensor]:
        """The tower's features `[t, width]` of all images of the samples, by `id(image)`.

        Images of references are included.
        """
        pictures = [s.query.image for s in samples] + [
            r.image for s in samples for r in s.query.references
        ]
        pictures, _ = distinct(pictures)
        pixels = self.segmenter.backbone.pixels.batch(
            pictures, self.segmenter.device, torch.float32
        )
        return dict(zip(map(id, pictures), tower_features(self.segmenter, pixels), strict=True))

    def draw(
        self, encoded, of: torch.Tensor, prompts: list[Prompt], truth: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Mask losses of one prompt per mask on images `of`.

        The true masks `truth` are `[m, h, w]`, all of one size.
        """
        decoder, size = self.segmenter.decoder, tuple(truth.shape[-2:])
        share = (
            torch.rand(len(truth)) / self.placed if self.placed else torch.full((len(truth),), 9.0)
        )
        names = [("boxed", "mended", "alone")[int(f)] if f < 3 else "plain" for f in share]
        groups: dict[tuple, list[int]] = {}
        for m, name in enumerate(names):
            groups.setdefault((name, prompts[m].kind), []).append(m)
        sums: dict[str, torch.Tensor] = {}
        overlap, plain = torch.zeros((), device=truth.device), names.count("plain")
        for (name, _), mine in groups.items():
            prompt = self.prompt(
                name,
                encoded,
                of[mine],
                Prompt.joined([prompts[m] for m in mine]).tokens,
                truth[mine],
            )
            logits, predicted = decoder.decode(encoded, of[mine], prompt)
            parts = mask_losses(decoder.restore, logits, predicted, [truth[mine]], [0] * len(mine))
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value * len(mine) / len(truth)
            if name == "plain":
                overlap = (
                    overlap
                    + mean_overlap(decoder.restore(logits, size), truth[mine]) * len(mine) / plain
                )
        self.overlap = overlap.detach()
        return sums

    def prompt(
        self, name: str, encoded, of: torch.Tensor, tokens: torch.Tensor, truth: torch.Tensor
    ) -> Prompt:
        """The prompt of masks in one group `name`.

        `plain`: the tokens `[m, d]`. `boxed`, `mended`: tokens with a box or a correcting click
        (see the class). `alone`: a box or a click without words.
        """
        decoder, size, plain = self.segmenter.decoder, tuple(truth.shape[-2:]), Prompt(tokens)
        if name == "plain":
            return plain
        if name == "mended":
            with torch.no_grad():
                first = decoder.restore(decoder.decode(encoded, of, plain)[0], size) > 0
            clicks = [
                decoder.places([click(f, t)], [], size).tokens
                for f, t in zip(first, truth, strict=True)
            ]
            dense = torch.cat([decoder.dense(f.numpy(force=True)) for f in first])
            return Prompt(torch.cat([tokens, torch.cat(clicks).to(tokens)], 1), dense)
        nothing = torch.zeros_like(truth[0])
        places = [
            decoder.places([click(nothing, t)], [], size)
            if name == "alone" and i % 3 == 0
            else decoder.places([], [box_in(t)], size)
            for i, t in enumerate(truth)
        ]
        places = Prompt(torch.cat([p.tokens for p in places]))
        return places if name == "alone" else plain.beside(places)

    def targets(self, patches: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """The codes `[m, d]` of masks, from patches `[m, t, width]` and their shares `[m, t]`."""
        return self.coder(patches, shares)

    def miss(
        self, tokens: torch.Tensor, patches: torch.Tensor, truths: list[torch.Tensor]
    ) -> torch.Tensor:
        """Loss between prompt tokens `[m, d]` and the codes of their masks, averaged over masks.

        It is (1 - cosine) + relative squared distance, and `POINTING` times a cross entropy: among
        the codes of all patches of the image, those under the mask should be the most similar. Only
        the cross entropy separates equal things from the first step; a distance alone is small at
        their mean. `patches` `[m, t, width]` are the tower's features of each mask's image.
        """
        framed = torch.cat(
            [framed_masks(t, self.segmenter.backbone.pixels.size) for t in truths if len(t)]
        )
        shares = patch_shares(framed, int(patches.shape[1] ** 0.5))
        with torch.no_grad():
            codes = self.targets(patches.float(), shares)
            each = nn.functional.normalize(
                self.coder.project(self.coder.norm(patches.float())), dim=-1
            )
        tokens = tokens.float()
        cosine = nn.functional.cosine_similarity(tokens, codes, dim=-1)
        distance = (tokens - codes).square().mean(-1) / codes.square().mean()
        likeness = (
            torch.einsum("mtd,md->mt", each, nn.functional.normalize(tokens, dim=-1)) / TEMPERATURE
        )
        wanted = shares / shares.sum(1, keepdim=True).clamp(min=1e-6)
        pointing = -(wanted * likeness.log_softmax(1)).sum(1)
        return (1 - cosine + distance + POINTING * pointing).mean()


class Memory:
    """Replaces an `ImageCache` where the features of all images are known."""

    def __init__(self, looked: dict[int, torch.Tensor]):
        self.looked = looked

    def __call__(self, encoders, images, encode, side: int = 0) -> torch.Tensor:
        """The features of the images, one row per image."""
        return torch.stack([self.looked[id(image)] for image in images])


OBJECTIVE = Aimed
