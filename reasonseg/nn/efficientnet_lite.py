"""EfficientNet-Lite as a transformers model: an ImageNet tower that LLaVA and SAM 2 both take.

The network is EfficientNet without squeeze-and-excitation, with ReLU6 and with a stem, a first and
a last stage that do not grow (Tan & Le 2019; the Lite variant by the same authors). Convolutions
with stride 2 are padded as in TensorFlow (at the right and bottom first). Batch norms are folded
into the convolutions before them, since the tower is used as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

# of each stage: repeats, kernel, stride, expansion, channels before scaling
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, EPS = 32, 1280, 1e-3
STRIDE = 32  # pixels of one patch of the last stage
POSITIONS = 16  # channels that say where a patch is


class EfficientNetLiteConfig(PretrainedConfig):
    """`width` and `depth` multiply channels and repeats (1.1 and 1.2 are Lite2). `image_size` is
    that of the images it is given; `patch_size`, `hidden_size`: of the patches that it returns.
    """

    model_type = "efficientnet_lite"

    width: float = 1.1
    depth: float = 1.2
    image_size: int = 384
    patch_size: int = STRIDE
    hidden_size: int = 0

    def __post_init__(self, **kwargs: Any):
        channels = [c for _, _, _, c in stages(self.width, self.depth)]
        # last stage, head, four patches of the stage of stride 16, place
        self.hidden_size = channels[-1] + HEAD + 4 * channels[4] + POSITIONS
        super().__post_init__(**kwargs)


@dataclass
class EfficientNetLiteOutput(ModelOutput):
    """`intermediate_hidden_states`: maps `[b, h, w, c]` of strides 4, 8, 16 and 32, as SAM 2's neck
    takes them. `hidden_states`: one entry, the patches `[b, t, hidden_size]` for a language model.
    """

    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def stages(width: float, depth: float) -> list[tuple[int, int, int, int]]:
    """(repeats, kernel, stride, channels) of each stage."""
    scaled = []
    for i, (repeats, kernel, stride, _, channels) in enumerate(STAGES):
        grown = repeats if i in (0, len(STAGES) - 1) else -int(-repeats * depth // 1)
        rounded = max(8, int(channels * width + 4) // 8 * 8)
        rounded += 8 if rounded < 0.9 * channels * width else 0
        scaled.append((grown, kernel, stride, rounded))
    return scaled


class Conv(nn.Conv2d):
    """A convolution with TensorFlow's padding."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(before, after, kernel, stride, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            edge = (kernel - 1) // 2
            return F.conv2d(input, self.weight, self.bias, 1, edge, 1, self.groups)
        height, width = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in input.shape[-2:]
        )
        edges = (width // 2, width - width // 2, height // 2, height - height // 2)
        return F.conv2d(F.pad(input, edges), self.weight, self.bias, stride, 0, 1, self.groups)


class Block(nn.Module):
    """An inverted bottleneck."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = before * expansion
        self.expand = Conv(before, wide, 1) if expansion > 1 else None
        self.depthwise = Conv(wide, wide, kernel, stride, wide)
        self.project = Conv(wide, after, 1)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        made = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return made + x if self.residual else made


class EfficientNetLite(PreTrainedModel):
    """The tower, with the 1280 channels before the classifier but without the classifier."""

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    base_model_prefix = "efficientnet_lite"

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.stem = Conv(3, STEM, 3, 2)
        self.stages = nn.ModuleList()
        before = STEM
        for (repeats, kernel, stride, after), given in zip(
            stages(config.width, config.depth), STAGES, strict=True
        ):
            blocks = []
            for i in range(repeats):
                blocks.append(Block(before, after, kernel, stride if i == 0 else 1, given[3]))
                before = after
            self.stages.append(nn.Sequential(*blocks))
        self.head = Conv(before, HEAD, 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution."""
        return self.stem

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> EfficientNetLiteOutput:
        """Maps and patches of images `[b, 3, s, s]`, s a multiple of 32."""
        # channels last: on CPUs half the time in bfloat16, four fifths in float32
        pixels = pixel_values.to(self.stem.weight.dtype, memory_format=torch.channels_last)
        x = F.relu6(self.stem(pixels), inplace=True)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        last = torch.cat([x, F.relu6(self.head(x))], 1)
        pyramid = (maps[1], maps[2], maps[4], last)
        patches = torch.cat([last, F.pixel_unshuffle(maps[4], 2), positions(last)], 1)
        states = patches.flatten(2).transpose(1, 2)
        return EfficientNetLiteOutput(
            last_hidden_state=states,
            intermediate_hidden_states=tuple(m.permute(0, 2, 3, 1) for m in pyramid),
            hidden_states=(states,),
        )


def positions(like: Tensor) -> Tensor:
    """Sines and cosines of where each patch is, `[b, POSITIONS, h, w]`."""
    b, _, h, w = like.shape
    waves = 2.0 ** torch.arange(POSITIONS // 4, device=like.device) * torch.pi / 2
    maps = []
    for count in (h, w):
        angle = waves[:, None] * ((torch.arange(count, device=like.device) + 0.5) / count)
        maps.append(torch.cat([angle.sin(), angle.cos()]))
    rows, columns = maps[0][:, :, None].expand(-1, -1, w), maps[1][:, None, :].expand(-1, h, -1)
    return torch.cat([rows, columns])[None].expand(b, -1, -1, -1).to(like.dtype)


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLite, exist_ok=True)
