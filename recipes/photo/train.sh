#!/usr/bin/env bash
# Trains the packaged model `photo` from its pip packages. Killed, it goes on where it stopped.
#   recipes/photo/train.sh [ROOT of the photographs]
# CORES=1 leaves a core free. Memory is kept by the allocator: on a CPU that saves a third of the time.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${BIN:-.venv/bin}
root=${1:-../shared/photos-train}
export OMP_NUM_THREADS=${CORES:-2}
export MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=268435456
"$bin/reasonseg" train recipes/photo/configs/coder.yaml data.root="$root"
"$bin/reasonseg" train recipes/photo/configs/decoder.yaml data.root="$root"
"$bin/reasonseg" train recipes/photo/configs/projector.yaml data.root="$root"
"$bin/reasonseg" train recipes/photo/configs/words.yaml data.root="$root"
"$bin/python" -m recipes.photo.ship --decoder out/photo_decoder/decoder --words out/photo_words/words --out out/photo_words_shipped
"$bin/reasonseg" train recipes/photo/configs/finish.yaml data.root="$root"
"$bin/reasonseg" train recipes/photo/configs/examples.yaml data.root="$root"
"$bin/python" -m recipes.photo.ship --decoder out/photo_decoder/decoder --words out/photo_words/words --finish out/photo_finish/finish --examples out/photo_examples/examples
