#!/usr/bin/env bash
# Published numbers against ours, as far as weights and data are here: scripts/reproduce.sh --models DIR --data DIR
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${BIN:-.venv/bin}/python" -m scripts.reproduce "$@"
