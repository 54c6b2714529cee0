"""What an agent did, for people: `trace.jsonl`, and `trace.html` with the pictures it showed."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

from PIL import Image

from reasonseg.structures.answer import Answer
from reasonseg.structures.images import atomic_write

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "img{max-width:100%;border:1px solid #ccc}table{border-collapse:collapse;width:100%}"
    "td,th{border:1px solid #ddd;padding:.3rem .5rem;text-align:left;vertical-align:top}"
    "pre{white-space:pre-wrap;margin:0;font-size:13px}"
)


def write_trace(answer: Answer, folder: Path) -> list[Path]:
    """Writes the trace of an agent's answer into a folder; nothing for other answers."""
    if "trace" not in answer.meta:
        return []
    steps = [*answer.meta["trace"], *({"call": e} for e in answer.meta.get("conversation", ()))]
    lines, page = folder / "trace.jsonl", folder / "trace.html"
    with atomic_write(lines) as aside:
        text = "".join(json.dumps(step, ensure_ascii=False) + "\n" for step in steps)
        aside.write_text(text, encoding="utf-8")
    with atomic_write(page) as aside:
        aside.write_text(_page(answer), encoding="utf-8")
    return [lines, page]


def _page(answer: Answer) -> str:
    meta = answer.meta
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>trace</title>",
        f"<style>{STYLE}</style>",
        f"<h1>{html.escape(answer.text or answer.status)}</h1>",
        f"<p>{answer.status} · {meta['calls']} of {meta['most_calls']} calls · {meta['tokens']} "
        f"tokens · model {html.escape(str(meta['model']))}</p>",
    ]
    if answer.image is not None and len(answer.masks):
        parts.append(_image(answer.overlay()))
    parts.append("<h2>Steps</h2><table><tr><th>step<th>calls so far<th>what came of it</tr>")
    for step in meta["trace"]:
        rest = {k: v for k, v in step.items() if k not in ("step", "calls")}
        told = html.escape(json.dumps(rest, ensure_ascii=False))
        parts.append(f"<tr><td>{html.escape(step['step'])}<td>{step['calls']}<td><pre>{told}</pre>")
    parts.append("</table><h2>Calls</h2><table><tr><th>call<th>asked<th>said</tr>")
    for entry in meta.get("conversation", ()):
        said = entry.get("reply", entry.get("error", ""))
        parts.append(
            f"<tr><td>{entry['call']} {html.escape(entry['step'])}<br>{entry['seconds']} s"
            f"<td><pre>{html.escape(entry['request'])}</pre><td><pre>{html.escape(said)}</pre>"
        )
    parts.append("</table>")
    for name, picture in answer.pictures.items():
        parts.append(f"<h2>{html.escape(name)}</h2>" + _image(Image.fromarray(picture)))
    return "\n".join(parts) + "\n"


def _image(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<p><img alt="" src="data:image/jpeg;base64,{data}"></p>'
