"""Saves and loads models.

A model is a folder: `settings.yaml`, `decoder/`, and as far as it has them `backbone/`, `references/` (transformers folders all),
`prompter.safetensors` and `references.safetensors`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reasonseg.checkpoints import delta as changes
from reasonseg.nn import quantization as quant
from reasonseg.nn.lora import adapters, fold_adapters
from reasonseg.config.schema import Kind, config_class, dump, parse
from reasonseg.errors import InputError
from reasonseg.nn.pretrained import place_of, replaced
from reasonseg.runtime import local_index
from reasonseg.config.model import ModelSettings
from reasonseg.nn.weights import refuse

if TYPE_CHECKING:
    from reasonseg.segmenters.embedding import Segmenter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def save(segmenter: Segmenter, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a model folder aside and renames it; `dtype` is that of the stored weights (None: as they are)."""
    folder = Path(folder)
    if any(quant.is_quantized(module) for module in segmenter.modules()):
        raise InputError("a quantized model is not saved; load it without quantization to save it")
    if segmenter.backbone is not None and adapters(segmenter.backbone):
        raise InputError(
            "this model has adapters beside its weights; fold them first (reasonseg.nn.lora.fold_adapters)"
        )
    if folder.exists() and not (folder / "settings.yaml").exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something that is not a reasonseg model; choose another folder")
    with replaced(folder) as aside:
        _write(segmenter, aside, dtype)


def _write(segmenter: Segmenter, folder: Path, dtype: torch.dtype | None) -> None:
    for name in ("backbone", "decoder", "references", "refiner"):
        if (part := getattr(segmenter, name)) is not None and hasattr(part, "save"):
            part.save(folder / name)
    for name in ("prompter", "references"):
        if (part := getattr(segmenter, name)) is not None and (weights := part.learned()):
            save_file({k: v.contiguous() for k, v in weights.items()}, folder / f"{name}.safetensors")
    if dtype is not None:
        _cast(folder, dtype)
    settings = dump(segmenter.settings)
    settings = {name: value for name, value in settings.items() if value is not None}
    for part in ("backbone", "decoder", "references", "refiner"):  # what the transformers folders say is not said twice
        for name in ("network", "pixels", "tokenizer"):
            settings.get(part, {}).pop(name, None)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _cast(folder: Path, dtype: torch.dtype) -> None:
    """Rewrites the weights of a folder in another precision; the model in memory keeps its own."""
    for file in folder.rglob("*.safetensors"):
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
    for file in folder.rglob("config.json"):
        file.write_text(
            json.dumps({**json.loads(file.read_text()), "dtype": str(dtype).removeprefix("torch.")}, indent=2)
        )


def load(
    cls: type[Segmenter],
    source: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    clip: str | None = None,
    sam: str | None = None,
    template: str | None = None,
    read: str | None = None,
    allow: tuple[str, ...] = (),
    revision: str | None = None,
    compile: bool = False,
) -> Segmenter:
    """A model from a folder, a hub id (`owner/name`) or, for None, the embedded one.

    A folder of changes is read with the model it changes (`reasonseg.checkpoints.delta`), one of LISA's, VLP-SAM's or SegGPT's as it was
    released (`reasonseg.checkpoints.released`), LLaVA v1 and VLP-SAM with a `sam` beside them; beside SegGPT a `sam` is its refiner.
    `device` None takes CUDA where there is one; `dtype` None is float32 on CPU and bfloat16 on CUDA. `quantization` (`int8`,
    `nf4`) is of the language model's layers. `clip` is the folder of a released checkpoint's vision tower, `sam` a mask
    decoder to use instead (.pth, folder or hub id). `read` says which state prompts the decoder (`predicting` or `at`),
    `template` which conversation strings are used; `compile` makes the step of each word faster after a first, slow
    one. Raises `InputError` where the source does not exist, a key is
    missing, left over or of another shape (unless a prefix in `allow` covers it), or an option does not apply.
    """
    device = torch.device(device or (f"cuda:{local_index()}" if torch.cuda.is_available() else "cpu"))
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    dtype = DTYPES.get(dtype, dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if quantization is not None and quantization not in quant.KINDS:
        raise InputError(f"quantization {quantization!r} is not one of {', '.join(quant.KINDS)}")
    place = place_of(source, revision)
    common = {"device": device, "dtype": dtype, "quantization": quantization, "allow": tuple(allow)}
    origin = {"source": source if source is None else str(source), "clip": clip, "sam": sam, "template": template}
    origin |= {"read": read, "allow": list(allow), "revision": revision}
    if (place / changes.FILE).is_file():
        if given := [name for name in ("clip", "sam", "template", "read", "allow") if origin[name]]:
            raise InputError(f"{place} holds changes of a model that is loaded as it was then; leave {given[0]} out")
        segmenter = _changed(cls, place, **common)
    elif not (place / "settings.yaml").is_file():
        segmenter = _released(place, {**common, "clip": clip, "sam_from": sam, "template": template, "at": read})
    elif clip is not None:
        raise InputError(
            f"clip does not apply to {source or 'the embedded model'}, which has its vision tower; leave it out"
        )
    else:
        segmenter = _own(cls, place, _settings(place, template, read, quantization), sam=sam, **common)
    segmenter.origin = changes.origin_of(place, origin)
    if compile:
        if segmenter.backbone is None:
            raise InputError(f"compile is for models that read words, {place} takes examples only; leave it out")
        segmenter.backbone.compile()
    return segmenter


def _changed(cls, folder: Path, *, allow, **how) -> Segmenter:
    base, made = changes.read(folder)
    segmenter = load(cls, base.pop("source"), **base, **how)
    made.apply(segmenter, folder)
    fold_adapters(segmenter)
    segmenter.settings = replace(segmenter.settings, about={**segmenter.settings.about, **made.about})
    return segmenter.eval()


def _own(cls, folder: Path, settings: ModelSettings, *, device, dtype, quantization, allow, sam) -> Segmenter:
    wanted = ["decoder/config.json"]
    wanted += ["backbone/config.json", "prompter.safetensors"] if settings.backbone else []
    for name in wanted:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing; the model folder was not copied whole")
    try:
        return _parts(
            cls, folder, settings, device=device, dtype=dtype, quantization=quantization, allow=allow, sam=sam
        )
    except (SafetensorError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(f"{folder} cannot be read, a file may be cut short: {reason}; fetch it again") from None


def _parts(cls, folder: Path, settings: ModelSettings, *, device, dtype, quantization, allow, sam) -> Segmenter:
    backbone, place = None, "refiner" if settings.decoder.kind == "seggpt" else "decoder"  # what a `sam` stands for
    if settings.backbone is not None:
        backbone = settings.backbone.config.load(folder / "backbone", allow, dtype=dtype)
        if quantization:
            quant.quantize(backbone.layers, quantization, dtype, device)
    decoders = {"decoder": settings.decoder, "refiner": settings.refiner}
    drawn = {
        n: k.config.load(folder / n, allow, dtype=dtype) for n, k in decoders.items() if k and not (sam and n == place)
    }
    if sam is not None:
        from reasonseg.checkpoints.released.lisa import decoder_from

        kind, drawn[place] = decoder_from(sam, device, dtype, allow)
        settings = replace(settings, **{place: Kind(kind, config_class("decoders", kind)())})
    built = {}
    for name in ("prompter", "references"):
        kind = getattr(settings, name)
        if kind is not None:
            has_folder = (folder / name).is_dir()
            part = kind.config.load(folder / name, allow, dtype=dtype) if has_folder else kind.config.build()
            built[name] = part.to(dtype)
    parts = built.get("prompter"), drawn["decoder"], built.get("references"), drawn.get("refiner")
    segmenter = cls(settings, backbone, *parts)
    for name, part in built.items():
        if part.learned():
            _fill(part, folder / f"{name}.safetensors", allow)
    return segmenter.to(device).eval()


def _released(place: Path, options: dict) -> Segmenter:
    from reasonseg.checkpoints.released import lisa, seggpt, vlp
    from reasonseg.checkpoints.released.layout import recognise

    for reader in (vlp, seggpt):
        if (found := reader.recognise(place)) is None:
            continue
        unfit = ("quantization", "template", "at") + (("clip",) if reader is seggpt else ())
        if given := [name for name in unfit if options.pop(name) is not None]:
            raise InputError(f"{place}: {given[0]} is of models that read words; this one has none, leave it out")
        return reader.read(found, **options)
    layout = recognise(place)
    if layout is None:
        raise InputError(
            f"{place} is no model we know: it has neither a settings.yaml (ours), nor the config.json and weights of LISA "
            "or LLaVA v1, nor is it a VLP-SAM or SegGPT checkpoint"
        )
    return lisa.read(layout, **options)


def _settings(folder: Path, template: str | None, read: str | None, quantization: str | None) -> ModelSettings:
    tree = yaml.safe_load((folder / "settings.yaml").read_text())
    settings = parse(ModelSettings, tree)
    given = [
        name
        for name, value in (("template", template), ("read", read), ("quantization", quantization))
        if value is not None
    ]
    if given and settings.backbone is None:
        raise InputError(f"{folder}: {given[0]} is of models that read words; this one has none, leave it out")
    if template is not None:
        tree["backbone"]["template"] = template
    if read is not None:
        tree["prompter"]["at"] = read
    return parse(ModelSettings, tree) if template or read else settings


def _fill(module: Any, file: Path, allow: tuple[str, ...]) -> None:
    weights, own = load_file(file), module.learned()
    fits = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    problems = [("missing", k, "") for k in own if k not in weights] + [
        ("left over", k, "") for k in weights if k not in own
    ]
    problems += [
        ("reshaped", k, f" is {list(v.shape)}, not {list(own[k].shape)}")
        for k, v in weights.items()
        if k in own and k not in fits
    ]
    refuse(problems, file, allow)
    module.load_state_dict({**module.state_dict(), **fits})


def push(segmenter: Segmenter, repo_id: str, *, private: bool = False, dtype: torch.dtype | None = None) -> None:
    """Saves to a temporary folder and uploads it to the hub."""
    import tempfile

    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as place:
        save(segmenter, Path(place) / "model", dtype)
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=Path(place) / "model")
