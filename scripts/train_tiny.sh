#!/usr/bin/env bash
# Rebuilds the embedded model from nothing: tokenizer, then the stages of configs/tiny.yaml. Killed, it goes on where it stopped.
#   scripts/train_tiny.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
test -f out/tiny/tokenizer/tokenizer.json || "$bin/python" -m scripts.make_tokenizer out/tiny/tokenizer
"$bin/reasonseg" train configs/tiny.yaml "$@"
"$bin/python" -m scripts.ship_tiny out/tiny/model
