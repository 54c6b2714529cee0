"""Schemas and examples of requests and answers for /openapi.json."""

from __future__ import annotations

from typing import Any

from reasonseg.serving.requests import Segment

FORM = {
    "type": "object",
    "required": ["image"],
    "properties": {
        "image": {"type": "string", "format": "binary"},
        "text": {"type": "string"},
        "points": {"type": "string", "description": "JSON: [[x, y, 1 or 0], ...]"},
        "boxes": {"type": "string", "description": "JSON: [[x0, y0, x1, y1], ...]"},
        "ref_image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "ref_mask": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "ref_label": {"type": "array", "items": {"type": "string"}},
    },
}
SCHEMA = Segment.model_json_schema(ref_template="#/components/schemas/{model}")
DEFINITIONS = SCHEMA.pop("$defs", {})
PIXEL = (  # a PNG of 8 x 8 pixels
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFklEQVR4nGP8//8/AzbAhFV0EEsAAJ1gAw/C5sI"
    "0AAAAAElFTkSuQmCC"
)
EXAMPLE = {"image": PIXEL, "text": "the thing you would take along on a rainy day"}
FOUND = {
    "text": "The umbrella <SEG>.",
    "status": "found",
    "references": [],
    "meta": {"model": "reasonseg-tiny"},
    "objects": [
        {
            "label": "umbrella",
            "score": 0.9,
            "box": [1, 2, 9, 9],
            "segmentation": {"size": [16, 16], "counts": "..."},
        }
    ],
}
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text}
    for code, text in {
        401: "the token is missing or wrong",
        408: "the request took too long to send",
        413: "the request is too large",
        422: "the request is not valid",
        503: "too many requests wait",
        504: "the answer took too long",
    }.items()
}


def json_body(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of a JSON body."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": example}},
        }
    }
