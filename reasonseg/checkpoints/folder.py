"""Saves and loads models.

A model is a folder: `settings.yaml`, `decoder/`, and as far as it has them `backbone/`,
`references/` (transformers folders all), `prompter.safetensors` and `references.safetensors`. A
folder of changes and released checkpoints are read as well.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reasonseg.checkpoints import delta, part_packages
from reasonseg.checkpoints.parts import Parts
from reasonseg.checkpoints.released.base import LoadOptions, find_format, refuse_pointers
from reasonseg.checkpoints.released.sam import decoder_from
from reasonseg.config.kinds import config_class
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind, dump, parse
from reasonseg.errors import InputError
from reasonseg.nn import quantization as quant
from reasonseg.nn.lora import adapters, fold_adapters
from reasonseg.nn.pretrained import atomic_folder, model_path, refuse
from reasonseg.runtime import local_rank

DEFAULT = "REASONSEG_MODEL"  # an environment variable
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = "stored"  # a dtype: every weight as it is in its file


def save(parts: Parts, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a model folder aside and renames it; `dtype` is that of the stored weights (None: as
    they are).

    Raises `InputError` for a quantized model, one with adapters that are not folded, and a folder
    that holds something else.
    """
    folder = Path(folder)
    if any(quant.is_quantized(module) for module in parts.modules()):
        raise InputError("a quantized model is not saved; load it without quantization to save it")
    if adapters(parts):
        raise InputError(
            "this model has adapters beside its weights; fold them first "
            "(reasonseg.nn.lora.fold_adapters)"
        )
    if folder.exists() and not (folder / "settings.yaml").exists() and any(folder.iterdir()):
        raise InputError(
            f"{folder} holds something that is not a reasonseg model; choose another folder"
        )
    with atomic_folder(folder) as aside:
        _write(parts, aside, dtype)


def _write(parts: Parts, folder: Path, dtype: torch.dtype | None) -> None:
    for name in ("backbone", "decoder", "references", "refiner"):
        if (part := getattr(parts, name)) is not None:
            part.save(folder / name)
    for name in ("prompter", "references"):
        if (part := getattr(parts, name)) is not None and (weights := part.learned()):
            save_file(
                {k: v.contiguous() for k, v in weights.items()}, folder / f"{name}.safetensors"
            )
    if dtype is not None:
        _cast(folder, dtype)
    settings = {name: value for name, value in dump(parts.settings).items() if value is not None}
    # what the transformers folders say is not said twice
    for part in (
        "backbone",
        "decoder",
        "references",
        "refiner",
    ):
        for name in ("network", "pixels", "tokenizer"):
            settings.get(part, {}).pop(name, None)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    (folder / "settings.yaml").write_text(text, encoding="utf-8")


def _cast(folder: Path, dtype: torch.dtype) -> None:
    """Rewrites the weights of a folder in another precision; the model in memory keeps its own."""
    for file in folder.rglob("*.safetensors"):
        weights = {
            k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(file).items()
        }
        save_file(weights, file, metadata={"format": "pt"})
    for file in folder.rglob("config.json"):
        config = {
            **json.loads(file.read_text(encoding="utf-8")),
            "dtype": str(dtype).removeprefix("torch."),
        }
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def load(
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
) -> Parts:
    """The parts of a model from a folder, a hub id (`owner/name`) or, for None, the packaged one.

    The keywords are those of `Segmenter.from_pretrained`, which see; `dtype` may also be `stored`.
    A folder of changes is read with the model it changes (`delta`), a released checkpoint as it is
    (`released`); beside SegGPT a `sam` is its refiner.
    """
    options = load_options(
        device, dtype, quantization, clip=clip, sam=sam, template=template, read=read, allow=allow
    )
    source, remark = (source, "") if source is not None else default_model()
    place = model_path(source, revision)
    origin = {
        "source": source if source is None else str(source),
        "clip": clip,
        "sam": sam,
        "template": template,
    }
    origin |= {"read": read, "allow": list(allow), "revision": revision}
    if (place / delta.FILE).is_file():
        if given := [name for name in ("clip", "sam", "template", "read", "allow") if origin[name]]:
            raise InputError(
                f"{place} holds changes of a model that is loaded as it was then; leave "
                f"{given[0]} out"
            )
        parts = _changed(place, device=device, dtype=dtype, quantization=quantization)
    elif (place / "settings.yaml").is_file():
        if clip is not None:
            name = source or "the packaged model"
            raise InputError(
                f"clip does not apply to {name}, which has its vision tower; leave it out"
            )
        parts = _own(place, _settings(place, options), options)
    else:
        format_, found = find_format(place)
        parts = format_.read(found, options)
    parts.origin = delta.origin_of(place, origin)
    if remark:
        parts.settings = replace(parts.settings, notice=remark)
    if compile:
        if parts.backbone is None:
            raise InputError(
                f"compile is for models that read words, {place} takes examples only; leave it out"
            )
        parts.backbone.compile()
    return parts


def default_model() -> tuple[str, str]:
    """The name of the model that is used where none is named, and a remark for people.

    It is `photo`, or `tiny` where the packages with its weights are not installed; or what the
    environment variable `REASONSEG_MODEL` names.
    """
    if named := os.environ.get(DEFAULT):
        return named, ""
    if lacking := part_packages.missing():
        listed = ", ".join(package.name for package in lacking)
        return "tiny", (
            f"the model tiny answers, which knows drawn scenes only: photo needs {listed}; "
            f"{part_packages.INSTALL}"
        )
    return "photo", ""


def load_options(
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    quantization: str | None,
    **more: Any,
) -> LoadOptions:
    """The options of a load with device and precision decided; raises `InputError` for words
    that are not known.
    """
    place = torch.device(device or (f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"))
    if isinstance(dtype, str) and dtype not in (*DTYPES, STORED):
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if quantization is not None and quantization not in quant.KINDS:
        raise InputError(f"quantization {quantization!r} is not one of {', '.join(quant.KINDS)}")
    precision = DTYPES[dtype] if isinstance(dtype, str) and dtype != STORED else dtype
    if precision is None:
        precision = torch.bfloat16 if place.type == "cuda" else torch.float32
    chosen = precision if isinstance(precision, torch.dtype) else None
    return LoadOptions(place, chosen, quantization, **more)


def _changed(folder: Path, **options: Any) -> Parts:
    base, made = delta.read(folder)
    parts = load(base.pop("source"), **base, **options)
    made.apply(parts, folder)
    fold_adapters(parts)
    parts.settings = replace(parts.settings, about={**parts.settings.about, **made.about})
    return parts.eval()


def _own(folder: Path, settings: ModelSettings, options: LoadOptions) -> Parts:
    for place in (folder, folder / "backbone", folder / "decoder"):
        refuse_pointers(place)
    wanted = ["decoder/config.json"]
    wanted += ["backbone/config.json", "prompter.safetensors"] if settings.backbone else []
    for name in wanted:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing; the model folder was not copied whole")
    try:
        return _parts(folder, settings, options)
    except (SafetensorError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(
            f"{folder} cannot be read, a file may be cut short: {reason}; fetch it again"
        ) from None


def _parts(folder: Path, settings: ModelSettings, options: LoadOptions) -> Parts:
    allow, dtype = options.allow, options.dtype
    how: dict[str, Any] = {"dtype": dtype or "auto"}
    backbone = None
    if settings.backbone is not None:
        backbone = settings.backbone.config.load(folder / "backbone", allow, **how)
        if options.quantization:
            precision = dtype or torch.float32
            quant.quantize(backbone.layers, options.quantization, precision, options.device)
    # what a `sam` stands for
    place = "decoder" if "tokens" in settings.decoder.config.takes else "refiner"
    drawers = {"decoder": settings.decoder, "refiner": settings.refiner}
    drawn = {
        name: kind.config.load(folder / name, allow, **how)
        for name, kind in drawers.items()
        if kind and not (options.sam and name == place)
    }
    if options.sam is not None:
        kind, drawn[place] = decoder_from(options.sam, options.device, dtype, allow)
        settings = replace(settings, **{place: Kind(kind, config_class("decoders", kind)())})
    built: dict[str, Any] = {}
    for name in ("prompter", "references"):
        if (kind := getattr(settings, name)) is not None:
            own = (folder / name).is_dir()
            part = kind.config.load(folder / name, allow, **how) if own else kind.config.build()
            built[name] = part if dtype is None else part.to(dtype)
    prompters = built.get("prompter"), built.get("references")
    parts = Parts(
        settings, backbone, prompters[0], drawn["decoder"], prompters[1], drawn.get("refiner")
    )
    for name, part in built.items():
        if part.learned():
            _fill(part, folder / f"{name}.safetensors", allow)
    return parts.to(options.device).eval()


def _settings(folder: Path, options: LoadOptions) -> ModelSettings:
    tree = yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))
    if (
        isinstance(tree, dict)
        and isinstance(tree.get("about"), dict)
        and tree["about"].pop("new_tokens", False)
    ):
        tree["new_markers"] = True  # where models of before said it
    settings = parse(ModelSettings, tree)
    if settings.backbone is None:
        options.refuse(
            folder,
            "template",
            "read",
            "quantization",
            why="is of models that read words; this one has none",
        )
    if options.template is not None:
        tree["backbone"]["template"] = options.template
    if options.read is not None:
        tree["prompter"]["at"] = options.read
    return parse(ModelSettings, tree) if options.template or options.read else settings


def _fill(module: Any, file: Path, allow: tuple[str, ...]) -> None:
    weights, own = load_file(file), module.learned()
    fits = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    problems = [("missing", k, "") for k in own if k not in weights]
    problems += [("left over", k, "") for k in weights if k not in own]
    problems += [
        ("reshaped", k, f" is {list(v.shape)}, not {list(own[k].shape)}")
        for k, v in weights.items()
        if k in own and k not in fits
    ]
    refuse(problems, file, allow)
    module.load_state_dict({**module.state_dict(), **fits})


def push(
    parts: Parts, repo_id: str, *, private: bool = False, dtype: torch.dtype | None = None
) -> None:
    """Saves to a temporary folder and uploads it to the hub."""
    import tempfile

    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as place:
        save(parts, Path(place) / "model", dtype)
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=Path(place) / "model")
