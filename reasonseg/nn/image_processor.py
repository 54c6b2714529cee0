"""Image preprocessing: resize with PIL, normalise, pad. All parts of a model use this module."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from reasonseg.errors import InputError

FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class ImageProcessor:
    """Preprocessing for a network that takes images of `size` x `size` pixels.

    - `aspect`: `crop` resizes the shorter side and crops the centre (CLIP). `crop_even` is the
      same, but half of an odd rest is rounded to the even number, as in torchvision. `squash`
      ignores the aspect ratio. `pad` resizes the longer side and pads at the right and bottom
      (SAM).
    - `mean`, `std`: of values 0..1. The padding is `mean`, that is 0 after normalisation.
    - `enlarged`: where above 0, the normalised image is enlarged once more to this side, the input
      of the network (released VLP-SAM).
    """

    size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    aspect: Literal["crop", "crop_even", "squash", "pad"] = "pad"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    enlarged: int = 0

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """`(height, width)` in pixels that an image of `size` has before padding or cropping."""
        if self.aspect == "squash":
            return self.size, self.size
        if self.aspect.startswith("crop"):  # CLIP's preprocessing rounds down, SAM's to the nearest
            return self.size * size[0] // min(size), self.size * size[1] // min(size)
        scale = self.size / max(size)
        return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """float32 `[3, size, size]` of a uint8 `[h, w, 3]` image; `enlarged` replaces `size` where
        set.
        """
        height, width = self.resized(image.shape[:2])
        if (height, width) != image.shape[:2]:
            filter_ = Image.Resampling[self.resample.upper()]
            image = np.asarray(Image.fromarray(image).resize((width, height), filter_))
        pixels = torch.from_numpy(np.array(self._cut(image))).permute(2, 0, 1).float() / 255
        pixels = (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[
            :, None, None
        ]
        _, height, width = pixels.shape
        pixels = torch.nn.functional.pad(pixels, (0, self.size - width, 0, self.size - height))
        if self.enlarged:
            side = (self.enlarged, self.enlarged)
            pixels = torch.nn.functional.interpolate(
                pixels[None], side, mode="bilinear", align_corners=True
            )[0]
        return pixels

    def mask(self, mask: np.ndarray, squash: bool = False) -> torch.Tensor:
        """A mask `[h, w]` in the frame of its preprocessed image, bool `[size, size]`.

        `squash` ignores the aspect ratio. Raises `InputError` where the crop leaves nothing of the
        mask.
        """
        height, width = (self.size, self.size) if squash else self.resized(mask.shape)
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        framed = self._cut(np.array(picture.resize((width, height), Image.Resampling.NEAREST))) > 0
        if (
            mask.any() and not framed.any()
        ):  # too small for nearest sampling: take its largest share
            share = self._cut(np.array(picture.resize((width, height), Image.Resampling.BOX)))
            if not share.any():
                raise InputError(
                    "the mask of the reference lies outside of the part of its image that this "
                    "model reads"
                )
            framed = share == share.max()
        framed = torch.from_numpy(framed)
        return torch.nn.functional.pad(
            framed, (0, self.size - framed.shape[1], 0, self.size - framed.shape[0])
        )

    def _cut(self, image: np.ndarray) -> np.ndarray:
        """The centre of a resized image or mask, where it is larger than the network's input."""
        halved = (
            (lambda rest: round(rest / 2))
            if self.aspect == "crop_even"
            else (lambda rest: rest // 2)
        )
        top, left = (halved(max(side - self.size, 0)) for side in image.shape[:2])
        return image[top : top + self.size, left : left + self.size]

    def batch(
        self, images: list[np.ndarray], device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """A batch `[b, 3, size, size]` of uint8 `[h, w, 3]` images on a device."""
        return torch.stack([self(image) for image in images]).to(device, dtype)

    def save(self, folder: Path) -> None:
        """Writes `preprocessor_config.json` with transformers' keys and our `aspect`."""
        kept = {
            "aspect": self.aspect,
            "resample_name": self.resample,
            **({"enlarged": self.enlarged} if self.enlarged else {}),
            "size": {"height": self.size, "width": self.size},
        }
        kept |= {
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "rescale_factor": 1 / 255,
        }
        (Path(folder) / FILE).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, **defaults) -> ImageProcessor:
        """Reads `preprocessor_config.json`, ours or that of transformers.

        `defaults` are used for settings that the file does not have. Raises `InputError` where the
        image size is unknown.
        """
        file = Path(folder) / FILE
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        kept = kept.get("image_processor", kept)
        size = kept.get("crop_size") if kept.get("do_center_crop") else kept.get("size")
        if isinstance(size, dict):
            size = next(
                (size[k] for k in ("height", "longest_edge", "shortest_edge") if k in size), None
            )
        fields = asdict(cls(**{"size": 0, **defaults}))
        fields["size"] = size or fields["size"]
        if kept.get("do_center_crop"):
            fields["aspect"] = "crop"
        for ours, theirs in (
            ("aspect", "aspect"),
            ("resample", "resample_name"),
            ("mean", "image_mean"),
            ("std", "image_std"),
            ("enlarged", "enlarged"),
        ):
            if theirs in kept:
                fields[ours] = (
                    tuple(kept[theirs]) if isinstance(kept[theirs], list) else kept[theirs]
                )
        if not fields["size"]:
            raise InputError(f"{file} has no image size")
        return cls(**fields)
