"""What checking is worth: gIoU of an agent whose proposer lies with probability p, against its own
first proposal, and the agent's own time a call.

    python -m scripts.agent_table [--limit 120] [--drawer tiny] [--noise 0.1]

Proposer and verifier are played by the truth of drawn scenes: the proposer names the box of another
object with probability p; the verifier chooses the right mask, but says something else with
probability `--noise`. The drawer is a packaged model. So the table shows the protocol, not a model.
"""

from __future__ import annotations

import argparse
import json
import re
import time

import numpy as np

from reasonseg.backbones.speakers.base import Reply, shaped
from reasonseg.backbones.speakers.places.family import families
from reasonseg.backbones.speakers.places.frames import intersection_over_union
from reasonseg.datasets.scenes import Config
from reasonseg.segmenters.agent import AgentSegmenter
from reasonseg.segmenters.drawers import open_drawer
from reasonseg.segmenters.spoken import SpokenSettings


class Player:
    """Proposer and verifier of one scene, who know the truth; `lie` and `noise` are 0..1."""

    name = "player"
    fingerprint = "player"

    def __init__(self, rng: np.random.Generator, lie: float, noise: float):
        self.rng, self.lie, self.noise = rng, lie, noise
        self.family = families()["qwen3-vl"]
        self.truth = np.zeros((1, 1), bool)
        self.others: list[np.ndarray] = []
        self.first: np.ndarray | None = None
        self.seconds = 0.0

    def shape(self, image: np.ndarray):
        return shaped(image, self.family)

    def say(self, pictures, text, *, limit=512, temperature=0.0, plain=False) -> Reply:
        began = time.perf_counter()
        said = self._said(text, pictures)
        self.seconds += time.perf_counter() - began
        return Reply(said, None, 0, 0)

    def _said(self, text: str, pictures) -> str:
        wrong = self.rng.random() < self.noise
        if "answers it better" in text:
            shown = [(p != pictures[0]).any(-1) for p in pictures[1:3]]
            better = "A" if _iou(shown[0], self.truth) >= _iou(shown[1], self.truth) else "B"
            return str(self.rng.choice(["A", "B"])) if wrong else better
        if "numbered" in text:
            facts = json.loads(re.search(r"height: (\[.*?\}\])", text)[1])
            keep = [f["number"] for f in facts if self._right(f["box"])]
            if wrong:
                keep = [int(self.rng.integers(1, len(facts) + 1))]
            return json.dumps({"keep": keep} if keep else {"keep": []})
        if "one to four words" in text:
            return "none of these words"
        lies = self.others and self.rng.random() < self.lie
        mask = self.others[int(self.rng.integers(len(self.others)))] if lies else self.truth
        return _box_json(mask)

    def _right(self, box: list[float]) -> bool:
        """Whether a box, in shares of the sides, is that of the truth (IoU above 0.5)."""
        height, width = self.truth.shape
        ys, xs = np.nonzero(self.truth)
        mine = (
            xs.min() / width,
            ys.min() / height,
            (xs.max() + 1) / width,
            (ys.max() + 1) / height,
        )
        return intersection_over_union((box[0], box[1], box[2], box[3]), mine) > 0.5


def _box_json(mask: np.ndarray) -> str:
    ys, xs = np.nonzero(mask)
    height, width = mask.shape
    box = [xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height]
    return json.dumps([{"bbox_2d": [round(1000 * float(v)) for v in box], "label": "it"}])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=120, help="questions (default: 120)")
    parser.add_argument("--drawer", default="tiny", help="a packaged model (default: tiny)")
    parser.add_argument("--noise", type=float, default=0.1, help="of the verifier (default: 0.1)")
    options = parser.parse_args()
    drawer = open_drawer(options.drawer)
    data = Config("val", count=options.limit, levels=("name", "relation", "compare")).build()
    print("p     first   agent   calls   own ms a call")
    for lie in (0.0, 0.1, 0.3, 0.5, 0.7):
        rng = np.random.default_rng(0)
        player = Player(rng, lie, options.noise)
        agent = AgentSegmenter(SpokenSettings("agent"), player, drawer, player)
        first, found, calls, own = [], [], [], []
        for i in range(len(data)):
            sample = data[i]
            player.truth = sample.truth.masks[0]
            player.others = [
                t.mask for t in data.scene(i).objects if not (t.mask & player.truth).any()
            ]
            began, player.seconds = time.perf_counter(), 0.0
            drawn = [0.0]
            answer = _timed(agent, drawer, sample.query, drawn)
            spent = time.perf_counter() - began - player.seconds - drawn[0]
            calls.append(answer.meta["calls"])
            own.append(1000 * spent / max(answer.meta["calls"], 1))
            found.append(_iou(answer.masks.any(0) if len(answer.masks) else None, player.truth))
            first.append(_first(answer, drawer, sample, player.truth))
        print(
            f"{lie:.1f}   {np.mean(first):.3f}   {np.mean(found):.3f}   {np.mean(calls):.2f}    "
            f"{np.mean(own):.1f}"
        )


def _timed(agent, drawer, query, drawn: list[float]):
    """The agent's answer; `drawn` gets the seconds of the drawer."""
    places, phrase = drawer.places, drawer.phrase

    def timed(method):
        def run(*arguments):
            began = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                drawn[0] += time.perf_counter() - began

        return run

    drawer.places, drawer.phrase = timed(places), timed(phrase)
    try:
        return agent(query)
    finally:
        drawer.places, drawer.phrase = places, phrase


def _first(answer, drawer, sample, truth: np.ndarray) -> float:
    """IoU of the first proposal, drawn and not checked."""
    from reasonseg.backbones.speakers.places.reading import Place

    boxes = next((s["places"] for s in answer.meta["trace"] if s.get("places")), [])
    if not boxes:
        return 0.0
    drawn = drawer.places(sample.query.image, [Place(tuple(boxes[0]))])
    return _iou(drawn.masks[0], truth)


def _iou(mask: np.ndarray | None, truth: np.ndarray) -> float:
    if mask is None:
        return 0.0
    union = (mask | truth).sum()
    return float((mask & truth).sum() / union) if union else 0.0


if __name__ == "__main__":
    main()
