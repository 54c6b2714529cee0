"""Puts a trained model folder into the package as the embedded model: ship_tiny.py FOLDER. The model card stays."""

import argparse
import shutil
from pathlib import Path

from reasonseg.checkpoint import EMBEDDED

LIMIT = 14 * 2**20

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    if size > LIMIT:
        raise SystemExit(f"{folder} holds {size / 2**20:.1f} MiB; at most {LIMIT / 2**20:.0f} are shipped")
    for part in ("backbone", "decoder"):
        shutil.rmtree(EMBEDDED / part, ignore_errors=True)
    shutil.copytree(folder, EMBEDDED, dirs_exist_ok=True)
    print(f"{size / 2**20:.1f} MiB now in {EMBEDDED}")
