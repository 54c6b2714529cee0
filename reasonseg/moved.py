"""Old names that still work for one release, each with a warning that says the new one. Remove
this file in 0.3.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {
    "adapters": "nn.lora",
    "asking": "segmenters.prompting",
    "attention": "nn.attention",
    "bank": "serving.reference_bank",
    "benchmarks": "evaluation.benchmarks",
    "cache": "nn.cache",
    "changes": "checkpoints.delta",
    "chat": "serving.terminal",
    "checkpoint": "checkpoints.folder",
    "clip_dense": "nn.clip_features",
    "commands": "cli",
    "doctor": "cli.doctor",
    "evaluate": "evaluation.scenes",
    "exports": "structures.export",
    "fewshot": "evaluation.few_shot",
    "filling": "nn.meta_init",
    "finetune": "training.finetune",
    "frozen": "nn.feature_store",
    "hub": "nn.pretrained",
    "images": "structures.images",
    "inspection": "evaluation.dataset_report",
    "libraries": "runtime",
    "llama_pieces": "nn.llama_tokenizer",
    "losses": "nn.losses",
    "masks": "structures.masks",
    "metrics": "evaluation.metrics",
    "objectives": "training.objectives",
    "optimizers": "training.optimizers",
    "overlay": "structures.overlay",
    "phrasing": "datasets.base",
    "pixels": "nn.image_processor",
    "planning": "training.memory",
    "polygons": "structures.polygons",
    "processes": "runtime",
    "prompt": "nn.prompt",
    "quantization": "nn.quantization",
    "regions": "structures.reference_masks",
    "released": "checkpoints.released",
    "rows": "evaluation.runner",
    "runs": "config.training",
    "sam_family": "decoders.base",
    "scenes": "datasets.synthetic",
    "scenes.drawing": "datasets.synthetic.drawing",
    "scenes.families": "datasets.synthetic.families",
    "scenes.knowledge": "datasets.synthetic.knowledge",
    "scenes.questions": "datasets.synthetic.questions",
    "scenes.sprites": "datasets.synthetic.sprites",
    "second_looks": "segmenters.refinement",
    "segmenter": "segmenters.base",
    "serve": "serving",
    "serve.api": "serving.api",
    "serve.conversations": "serving.conversations",
    "serve.engine": "serving.engine",
    "serve.fleet": "serving.ray_annotate",
    "serve.reading": "serving.requests",
    "serve.replicas": "serving.ray_serve",
    "serve.session": "serving.session",
    "serve.web": "serving.page",
    "settings": "config.model",
    "sharding": "training.fsdp",
    "sheet": "structures.contact_sheet",
    "speaking": "structures.markers",
    "stepping": "nn.generation",
    "streams": "datasets.base",
    "tables": "evaluation.tables",
    "train": "training.run",
    "trainer": "training.trainer",
    "validation": "training.validation",
    "vocabulary": "",  # the package itself has Query, Reference, Answer and Sample
    "weights": "nn.pretrained",
}
OBJECTIVES = {
    "dense": "recipes.embedded.patches",
    "codes": "recipes.embedded.codes",
    "properties": "recipes.embedded.properties",
}


class _Redirect(MetaPathFinder, Loader):
    """Gives the module of the new name to whoever imports the old one."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "reasonseg" and name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"reasonseg.{MODULES[spec.name.partition('.')[2]]}".rstrip(".")
        warnings.warn(
            f"{spec.name} is now {new}; the old name goes with the next release",
            DeprecationWarning,
            2,
        )
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            module.__spec__ = spec.loader_state  # the import system had put the old name's there


def install() -> None:
    """Makes the old names of modules importable."""
    if not any(isinstance(finder, _Redirect) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Redirect())  # before a moved package is searched for its files
