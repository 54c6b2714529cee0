#!/usr/bin/env bash
# Measures what examples are worth with the embedded models and prints the tables; what was measured is kept in out/claims.json.
#   scripts/few_shot_claims.sh [few-shot,composed,selection,ensembles] [--limit N]
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${BIN:-.venv/bin}/python" -m scripts.few_shot_claims "$@"
