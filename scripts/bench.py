"""Speed, as ratios of paired runs in one process.

    python -m scripts.bench latency|throughput|evaluation|training|encoder [--json FILE]

- latency: one question about a new image, and a second one about the same image, against (a) the
  reference protocol: no key-value cache, the vision tower and the language model over the whole
  prefix at every token, the image encoder at every question; and (b) a plain transformers pipeline:
  `generate` with its cache, the decoder called separately, nothing cached. Answers of 4, 12 and 24
  tokens are forced, so that all ways do the same work; masks are compared.
- throughput: `segmenter.batch` of 2 to 32 questions about as many images, against one by one.
- evaluation: teacher-forced masks of 8 sentences per image, against the reference's way: the tower
  and the prefix for every sentence.
- training: a step of 8 questions with adapters and mask decoder trained; frozen encoders run at
  every step, or their features are read.
- encoder: SAM's --vit with random weights, --batch images at once (bfloat16 on a GPU): eager, sdpa
  and compiled, against the original package (extra `sam`), one by one in float32.

A ratio is baseline time over our time: above 1 means we are faster. Reported are medians of
`--runs`, with their range.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessorList

from reasonseg import Query, Segmenter
from reasonseg.nn.feature_store import FeatureStore
from reasonseg.nn.features import Features
from reasonseg.nn.lora import add_lora, fold_adapters
from reasonseg.nn.prompt import Prompt
from reasonseg.structures.answer import Answer
from reasonseg.structures.sample import Sample
from scripts.timing import Forced, answer_of, environment, forced, image, paired, ratio, show

LENGTHS, BATCHES, SENTENCES = (4, 12, 24), (2, 4, 8, 16, 32), 8
WORDS = (
    "the cup",
    "what flies",
    "the largest animal",
    "the red car",
    "the cat left of the tree",
    "something to eat",
)


@torch.inference_mode()
def reference(segmenter: Segmenter, query: Query, answer: list[int]) -> np.ndarray:
    """The mask of the reference protocol, bool `[1, h, w]`."""
    backbone = segmenter.backbone
    model, ids = backbone.model, backbone.prompt_ids(query)
    for token in answer:
        row = torch.tensor([ids], device=segmenter.device)
        embedded = backbone.embed(row, backbone.encode([query.image]))
        hidden = model.model.language_model(
            inputs_embeds=embedded, use_cache=False
        ).last_hidden_state
        _ = model.lm_head(hidden)[:, -1].argmax(-1)
        ids = [*ids, token]
    place = len(ids) - len(answer) + answer.index(backbone.markers.seg) - 1
    return drawn(segmenter, query, hidden[:, place])


@torch.inference_mode()
def plain(segmenter: Segmenter, query: Query, answer: list[int]) -> np.ndarray:
    """The mask by `generate` with its own cache, then the decoder, bool `[1, h, w]`."""
    backbone = segmenter.backbone
    row = torch.tensor([backbone.prompt_ids(query)], device=segmenter.device)
    out = backbone.model.generate(
        inputs_embeds=backbone.embed(row, backbone.encode([query.image])),
        attention_mask=torch.ones_like(row),
        max_new_tokens=len(answer),
        do_sample=False,
        output_hidden_states=True,
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([Forced(answer)]),
        pad_token_id=backbone.tokenizer.pad_token_id,
    )
    step = answer.index(backbone.markers.seg)
    return drawn(segmenter, query, out.hidden_states[step][-1][:, -1])


def drawn(segmenter: Segmenter, query: Query, state: torch.Tensor) -> np.ndarray:
    """Encodes the image and draws one mask, bool `[1, h, w]`."""
    features = segmenter.decoder.encode([query.image])
    logits, _ = segmenter.decoder.decode(
        features, torch.zeros(1, dtype=torch.long), segmenter.prompter(state)
    )
    return (segmenter.decoder.restore(logits, query.size) > 0).cpu().numpy()


def latency(segmenter: Segmenter, runs: int) -> dict:
    """Seconds and ratios of first and second question, by answer length."""
    seconds = {str(length): latency_of(segmenter, length, runs) for length in LENGTHS}
    spread = {
        f"{ours}_over_{baseline}": {
            length: ratio(spent, baseline, ours) for length, spent in seconds.items()
        }
        for ours in ("first", "followup")
        for baseline in ("reference", "plain")
    }
    ratios = {
        name: {length: r["median"] for length, r in by_length.items()}
        for name, by_length in spread.items()
    }
    medians = {
        length: {k: statistics.median(v) for k, v in spent.items()}
        for length, spent in seconds.items()
    }
    return {"ratios": ratios, "spread": spread, "seconds": medians}


def latency_of(segmenter: Segmenter, length: int, runs: int) -> dict[str, list[float]]:
    """Seconds of each way of answering with `length` tokens."""
    answer, query = answer_of(segmenter, length), Query(image(0), WORDS[0])

    def first():
        segmenter.forget()
        return segmenter(query, max_new_tokens=length)

    works = {
        "reference": lambda: reference(segmenter, query, answer),
        "plain": lambda: plain(segmenter, query, answer),
        "first": first,
        "followup": lambda: segmenter(query, max_new_tokens=length),
    }
    with forced(answer):
        same = first().masks
        for other in ("reference", "plain"):
            assert (works[other]() != same).mean() < 1e-3, f"{other} draws another mask"
        return paired(works, runs)


def throughput(segmenter: Segmenter, runs: int) -> dict:
    """Batches against one by one, with mixed sizes of images and lengths of questions."""
    queries = [
        Query(image(i, (360 + 40 * (i % 4), 640 - 60 * (i % 3))), WORDS[i % len(WORDS)])
        for i in range(max(BATCHES))
    ]

    def asked(count: int, batch: int):
        segmenter.forget()
        for start in range(0, count, batch):
            segmenter.batch(queries[start : start + batch], max_new_tokens=12)

    ratios, spread, spent = {}, {}, {}
    for n in BATCHES:
        seconds = paired(
            {"single": lambda n=n: asked(n, 1), "batch": lambda n=n: asked(n, n)}, max(runs // 2, 3)
        )
        spread[str(n)] = ratio(seconds, "single", "batch")
        ratios[str(n)] = spread[str(n)]["median"]
        spent[str(n)] = {"questions_per_second": n / statistics.median(seconds["batch"])}
    return {"ratios": {"batch_over_single": ratios}, "spread": spread, "seconds": spent}


def reference_states(segmenter: Segmenter, queries: list[Query], answer: list[int]) -> torch.Tensor:
    """The states `[n, width]` that predict `<SEG>`: tower and prefix run for every question."""
    backbone = segmenter.backbone
    place = answer.index(backbone.markers.seg)
    rows = [[*backbone.prompt_ids(q), *answer] for q in queries]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    embedded = backbone.embed(ids, backbone.encode([q.image for q in queries]))
    hidden = backbone.model.model.language_model(
        inputs_embeds=embedded, attention_mask=mask
    ).last_hidden_state
    _ = backbone.model.lm_head(hidden)
    return torch.stack(
        [hidden[i, len(row) - len(answer) + place - 1] for i, row in enumerate(rows)]
    )


@torch.inference_mode()
def evaluation(segmenter: Segmenter, runs: int) -> dict:
    """Teacher-forced masks of several sentences per image."""
    backbone, picture = segmenter.backbone, image(0)
    queries = [Query(picture, WORDS[i % len(WORDS)]) for i in range(SENTENCES)]
    answer = [*backbone.text_ids("<SEG>."), backbone.tokenizer.eos_token_id]

    def masks(features, prompt: Prompt):
        logits, _ = segmenter.decoder.decode(
            features, torch.zeros(SENTENCES, dtype=torch.long), prompt
        )
        return (segmenter.decoder.restore(logits, queries[0].size) > 0).cpu().numpy()

    def theirs():
        features = segmenter.decoder.encode([picture])
        return masks(features, segmenter.prompter(reference_states(segmenter, queries, answer)))

    def ours():
        segmenter.forget()
        return segmenter.forced(queries)

    kept = segmenter.decoder.encode([picture])
    whole = segmenter.decoder.encode

    def without(work):
        segmenter.decoder.encode = lambda images: kept
        try:
            return work()
        finally:
            segmenter.decoder.encode = whole

    seconds = paired(
        {
            "reference": theirs,
            "ours": ours,
            "reference-": lambda: without(theirs),
            "ours-": lambda: without(ours),
        },
        runs,
    )
    spread = {
        "evaluation_over_reference": ratio(seconds, "reference", "ours"),
        "evaluation_over_reference_without_encoder": ratio(seconds, "reference-", "ours-"),
    }
    return {
        "ratios": {k: v["median"] for k, v in spread.items()},
        "spread": spread,
        "seconds": {k: statistics.median(v) for k, v in seconds.items()},
    }


def training(segmenter: Segmenter, runs: int) -> dict:
    """Seconds of a step with and without stored features, and the difference of their losses."""
    samples = []
    for k, words in enumerate((*WORDS, *WORDS[:2])):
        mask = np.zeros((1, 480, 640), bool)
        mask[0, 100:300, 150:400] = True
        truth = Answer("The thing <SEG>.", mask, [1.0], [words], "found")
        samples.append(Sample(Query(image(k), words), truth, str(k), ""))
    segmenter.train().requires_grad_(False)
    trained = list(segmenter.prompter.parameters()) + list(
        segmenter.decoder.model.mask_decoder.parameters()
    )
    trained += add_lora(segmenter.backbone.layers, 8, 16.0)
    for parameter in trained:
        parameter.requires_grad_(True)
    losses = {}

    def step(kept: FeatureStore | None, name: str) -> None:
        segmenter.feature_store = kept
        segmenter.zero_grad()
        loss = segmenter.loss(samples)["loss"]
        loss.backward()
        losses[name] = float(loss.detach())

    with tempfile.TemporaryDirectory() as folder:
        kept = FeatureStore(Path(folder))
        works = {
            "encoders at every step": lambda: step(None, "every"),
            "kept": lambda: step(kept, "kept"),
        }
        step(kept, "kept")
        seconds = paired(works, runs)
    fold_adapters(segmenter.backbone.layers)
    segmenter.feature_store = None
    found = {"seconds": {k: statistics.median(v) for k, v in seconds.items()}}
    return found | {
        "ratio": ratio(seconds, "encoders at every step", "kept"),
        "loss_apart": abs(losses["every"] - losses["kept"]),
    }


@torch.inference_mode()
def encoder(_: Segmenter | None, runs: int, vit: str = "vit_b", batch: int = 1) -> dict:
    """SAM's image encoder at 1024 pixels.

    `relative_error` is that of its embeddings: norm of the difference over the norm.
    """
    from segment_anything import sam_model_registry

    from reasonseg.checkpoints.released import sam
    from reasonseg.nn.meta_init import WeightFiller, meta_init

    gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if gpu else "cpu"), torch.bfloat16 if gpu else torch.float32
    original = sam_model_registry[vit]().eval()
    weights = original.state_dict()
    with meta_init():
        decoder = sam.meta_sam(list(weights), lambda k: tuple(weights[k].shape))
    filling = WeightFiller(decoder, device, dtype, Path(vit))
    for key, value in weights.items():
        filling.put(
            [f"model.{name}" for name in sam.renamed(key, sam.head_layers(list(weights)))],
            value,
            key,
        )
    filling.done()
    pixels = torch.stack([decoder.eval().pixels(image(i)) for i in range(batch)]).to(device)
    original.to(device)
    compiled = torch.compile(decoder.encoder)

    def ours(run: Callable, way: str) -> torch.Tensor:
        decoder.encoder.set_attn_implementation(way)
        return run(pixels.to(dtype)).last_hidden_state

    works = {
        "original": lambda: torch.cat([original.image_encoder(one[None]) for one in pixels]),
        "eager": lambda: ours(decoder.encoder, "eager"),
        "sdpa": lambda: ours(decoder.encoder, "sdpa"),
        "compiled": lambda: ours(compiled, "sdpa"),
    }
    made = {name: work().float() for name, work in works.items()}
    masks = {name: clicked(decoder, embedding.to(dtype)) for name, embedding in made.items()}
    seconds = paired(works, max(runs // 2, 2))
    names = [name for name in works if name != "original"]
    spread = {f"{name}_over_original": ratio(seconds, "original", name) for name in names}
    truth = made["original"]
    return {
        "ratios": {k: v["median"] for k, v in spread.items()},
        "spread": spread,
        "pictures": batch,
        "encoder": vit,
        "relative_error": {
            name: float((made[name] - truth).norm() / truth.norm()) for name in names
        },
        "mask_pixels_apart": {
            name: float((masks[name] != masks["original"]).float().mean()) for name in names
        },
        "seconds": {k: statistics.median(v) for k, v in seconds.items()},
    }


def clicked(decoder, embedding: torch.Tensor) -> torch.Tensor:
    """The masks of a click into the middle of each image, bool `[b, s, s]`."""
    prompt = decoder.places([(320.0, 240.0, 1)], [], (480, 640))
    many = Prompt(prompt.tokens.expand(len(embedding), -1, -1))
    of = torch.arange(len(embedding), device=embedding.device)
    return decoder.decode(Features(embedding), of, many)[0] > 0


MODES = {
    "latency": latency,
    "throughput": throughput,
    "evaluation": evaluation,
    "training": training,
    "encoder": encoder,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--model", help="folder or hub id (default: the embedded model)")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compile", action="store_true", help="compile our step of a token")
    parser.add_argument(
        "--vit", choices=["vit_b", "vit_l", "vit_h"], default="vit_b", help="SAM of mode encoder"
    )
    parser.add_argument("--batch", type=int, default=1, help="images at once in mode encoder")
    options = parser.parse_args()
    alone = options.mode == "encoder"
    segmenter = None if alone else Segmenter.from_pretrained(options.model, compile=options.compile)
    more = {"vit": options.vit, "batch": options.batch} if alone else {}
    measured = MODES[options.mode](segmenter, options.runs, **more)
    found = {**measured, "environment": environment(segmenter) | {"compiled": options.compile}}
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
