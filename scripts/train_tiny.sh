#!/usr/bin/env bash
# Moved to recipes/embedded/train.sh; this name goes with the next release.
set -euo pipefail
echo "scripts/train_tiny.sh is now recipes/embedded/train.sh" >&2
exec "$(dirname "$0")/../recipes/embedded/train.sh" "$@"
