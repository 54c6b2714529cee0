"""Contact sheets: many annotated images in one image, for visual checks."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reasonseg.structures.images import atomic_write
from reasonseg.structures.overlay import draw_overlay
from reasonseg.structures.sample import Sample

CELL, CAPTION, COLUMNS = 400, 70, 4
REMARKS, LINE = 8, 20  # remarks on a sheet, and the height of a line in pixels


def contact_sheet(cells: Sequence[tuple[Image.Image, str]], columns: int = COLUMNS) -> Image.Image:
    """One image that shows images with their captions in a grid of at most `columns` columns.

    Each cell is `CELL` pixels wide; larger images are scaled down to fit.
    """
    rows = -(-len(cells) // columns)
    columns = min(columns, len(cells))
    sheet = Image.new("RGB", (columns * CELL, rows * (CELL + CAPTION)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (picture, caption) in enumerate(cells):
        x, y = i % columns * CELL, i // columns * (CELL + CAPTION)
        picture = picture.copy()
        picture.thumbnail((CELL - 8, CELL - 8))
        sheet.paste(picture, (x + (CELL - picture.width) // 2, y + 4))
        lines = [line for part in caption.split("\n") for line in textwrap.wrap(part, 52)][:4]
        pen.multiline_text((x + 8, y + CELL), "\n".join(lines), "black", font, spacing=2)
    return sheet


def _with_remarks(sheet: Image.Image, remarks: Sequence[str]) -> Image.Image:
    """A sheet with lines of text below it, at most `REMARKS` remarks."""
    width = max(sheet.width // 8, 40)
    lines = [line for r in remarks[:REMARKS] for line in textwrap.wrap(r, width)]
    if not lines:
        return sheet
    whole = Image.new("RGB", (sheet.width, sheet.height + LINE * len(lines) + 16), "white")
    whole.paste(sheet, (0, 0))
    font = ImageFont.load_default(15)
    ImageDraw.Draw(whole).multiline_text((8, sheet.height + 4), "\n".join(lines), "black", font)
    return whole


def save_sheet(samples: Sequence[Sample], out: str | Path, remarks: Sequence[str] = ()) -> Path:
    """Writes `sheet.png` into the folder `out` and returns its path; the sheet ends with `remarks`.

    Also writes, for each sample, its image, its true masks (PNG, 0 and 255) and one line of
    `samples.jsonl`.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    cells, lines = [], []
    for i, sample in enumerate(samples):
        image, truth = sample.query.image, sample.truth
        stem = f"{i:03d}-{sample.level}"
        Image.fromarray(image).save(out / f"{stem}.png")
        for k, mask in enumerate(truth.masks):
            Image.fromarray(mask.astype(np.uint8) * 255).save(out / f"{stem}-mask-{k}.png")
        overlay = draw_overlay(image, truth.masks, truth.labels, truth.scores)
        asked = f"{sample.level}: {sample.query.text}" if sample.level else sample.query.text
        cells.append((overlay, f"{asked}\n{truth.text}"))
        lines.append(
            {
                "image": f"{stem}.png",
                "level": sample.level,
                "text": sample.query.text,
                "answer": truth.text,
                "id": sample.id,
            }
        )
    with atomic_write(out / "samples.jsonl") as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with atomic_write(out / "sheet.png") as aside:
        _with_remarks(contact_sheet(cells), remarks).save(aside, format="PNG")
    return out / "sheet.png"
