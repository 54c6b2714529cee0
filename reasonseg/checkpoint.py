"""Saves and loads models.

A model is a folder: `settings.yaml`, `backbone/` and `decoder/` (transformers folders), `prompter.safetensors`.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from safetensors.torch import load_file, save_file

from reasonseg.config import dump, parse
from reasonseg.errors import InputError
from reasonseg.settings import ModelSettings
from reasonseg.weights import refuse

if TYPE_CHECKING:
    from reasonseg.segmenter import Segmenter

EMBEDDED = Path(__file__).parent / "assets" / "tiny"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def save(segmenter: Segmenter, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a model folder aside and renames it; `dtype` is that of the stored weights (None: as they are)."""
    folder = Path(folder)
    if folder.exists() and not (folder / "settings.yaml").exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something that is not a reasonseg model; choose another folder")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    segmenter.backbone.save(aside / "backbone")
    segmenter.decoder.save(aside / "decoder")
    save_file({k: v.contiguous() for k, v in segmenter.prompter.state_dict().items()}, aside / "prompter.safetensors")
    if dtype is not None:
        _cast(aside, dtype)
    settings = dump(segmenter.settings)
    for part in ("backbone", "decoder"):  # what the transformers folders say is not said twice
        for name in ("network", "pixels", "tokenizer"):
            settings[part].pop(name, None)
    (aside / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    _swap(aside, folder)


def _cast(folder: Path, dtype: torch.dtype) -> None:
    """Rewrites the weights of a folder in another precision; the model in memory keeps its own."""
    for file in folder.rglob("*.safetensors"):
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
    for file in folder.rglob("config.json"):
        file.write_text(
            json.dumps({**json.loads(file.read_text()), "dtype": str(dtype).removeprefix("torch.")}, indent=2)
        )


def _swap(aside: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    if folder.exists():
        for extra in folder.iterdir():  # a README or a model card written by hand stays
            if not (aside / extra.name).exists():
                (shutil.copytree if extra.is_dir() else shutil.copy2)(extra, aside / extra.name)
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


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
) -> Segmenter:
    """A model from a folder, a hub id (`owner/name`) or, for None, the embedded one.

    `device` None takes CUDA where there is one; `dtype` None is float32 on CPU and bfloat16 on CUDA; `read` says which state
    prompts the decoder (`predicting` or `at`), `template` which conversation strings are used. Raises `InputError` where
    the source does not exist, a key is missing, left over or of another shape (unless a prefix in `allow` covers it), or
    an option does not apply.
    """
    if quantization is not None or clip is not None or sam is not None:
        named = next(k for k, v in {"quantization": quantization, "clip": clip, "sam": sam}.items() if v is not None)
        raise InputError(f"{named} does not apply to {source or 'the embedded model'}; leave it out")
    folder = _folder(source, revision)
    settings = _settings(folder, template, read)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    dtype = DTYPES.get(dtype, dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    backbone = settings.backbone.config.load(folder / "backbone", allow, dtype=dtype)
    decoder = settings.decoder.config.load(folder / "decoder", allow, dtype=dtype)
    prompter = settings.prompter.config.build().to(dtype)
    _fill(prompter, folder / "prompter.safetensors", allow)
    return cls(settings, backbone, prompter, decoder).to(device).eval()


def _folder(source: str | Path | None, revision: str | None) -> Path:
    if source is None:
        return EMBEDDED
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "settings.yaml").is_file():
            raise InputError(
                f"{folder} is no reasonseg model: it has no settings.yaml (released weights are imported first)"
            )
        return folder
    text = str(source)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(f"no model at {text}: it is neither a folder nor a hub id such as owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise InputError(f"no model at {text}: no such folder, and the hub did not give it ({reason})") from None


def _settings(folder: Path, template: str | None, read: str | None) -> ModelSettings:
    tree = yaml.safe_load((folder / "settings.yaml").read_text())
    settings = parse(ModelSettings, tree)
    if template is not None:
        tree["backbone"]["template"] = template
    if read is not None:
        tree["prompter"]["at"] = read
    return parse(ModelSettings, tree) if template or read else settings


def _fill(module: torch.nn.Module, file: Path, allow: tuple[str, ...]) -> None:
    weights, own = load_file(file), module.state_dict()
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
    module.load_state_dict({**own, **fits})


def push(segmenter: Segmenter, repo_id: str, *, private: bool = False, dtype: torch.dtype | None = None) -> None:
    """Saves to a temporary folder and uploads it to the hub."""
    import tempfile

    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as place:
        save(segmenter, Path(place) / "model", dtype)
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=Path(place) / "model")
