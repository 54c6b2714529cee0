"""Puts a trained model folder into the package as the embedded model; the model card stays.

ship_tiny.py FOLDER [--as NAME]
"""

import argparse
import shutil
from pathlib import Path

import yaml

from reasonseg.nn.pretrained import EMBEDDED

LIMIT = 24_000_000

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--as", dest="name", choices=["tiny", "tiny_seggpt"], default="tiny")
    options = parser.parse_args()
    assets, target = EMBEDDED.parent, EMBEDDED.with_name(options.name)
    others = [f for f in assets.rglob("*.safetensors") if not f.is_relative_to(target)]
    size = sum(f.stat().st_size for f in [*options.folder.rglob("*.safetensors"), *others])
    if size > LIMIT:
        raise SystemExit(
            f"the embedded models would be {size / 1e6:.1f} MB; at most {LIMIT / 1e6:.0f} are "
            "shipped"
        )
    for part in ("backbone", "decoder", "references"):
        shutil.rmtree(target / part, ignore_errors=True)
    shutil.copytree(options.folder, target, dirs_exist_ok=True)
    settings = target / "settings.yaml"
    tree = yaml.safe_load(settings.read_text(encoding="utf-8"))
    if options.name == "tiny":
        tree["memory"] = 0  # it was trained on single questions
    settings.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    print(f"{size / 1e6:.1f} MB now in {EMBEDDED.parent}")
