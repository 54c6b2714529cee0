"""Opens drawers by the name of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reasonseg.checkpoints.folder import load, load_options
from reasonseg.checkpoints.released.sam import decoder_from
from reasonseg.decoders import sam3
from reasonseg.nn.pretrained import PACKAGED, model_path
from reasonseg.segmenters.base import segmenter_of
from reasonseg.segmenters.concept import ConceptDrawer
from reasonseg.segmenters.drawing import DecoderDrawer, Drawer


def open_drawer(source: str | None, device: Any = None, dtype: Any = None) -> Drawer:
    """A drawer: a packaged model, a folder of ours, a SAM of any family, or SAM 3.

    Raises `InputError` where nothing has that name, or it draws from examples only.
    """
    options = load_options(device, dtype, None)
    name = str(source or "the packaged model")
    if source is None or source in PACKAGED or _is_ours(Path(source)):
        segmenter = segmenter_of(load(source, device=device, dtype=dtype))
        return DecoderDrawer(segmenter.decoder, segmenter.settings.score, name, segmenter)
    place = Path(source) if Path(source).exists() else model_path(source)
    if sam3.is_concept(place):
        return ConceptDrawer(sam3.load(place, options.device, options.dtype), name)
    _, decoder = decoder_from(str(place), options.device, options.dtype)
    decoder.eval()
    return DecoderDrawer(decoder, "predicted", name)


def _is_ours(place: Path) -> bool:
    names = ("settings.yaml", "changes.yaml", "packages.yaml", "run.json")
    return any((place / name).exists() for name in names)
