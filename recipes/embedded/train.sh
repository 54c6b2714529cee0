#!/usr/bin/env bash
# Rebuilds the embedded model from nothing: tokenizer, words, examples, both at once, what words mean, finer masks, more words, and how many. Killed, it goes on where it stopped.
#   recipes/embedded/train.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${BIN:-.venv/bin}
test -f out/tiny/tokenizer/tokenizer.json || "$bin/python" -m recipes.embedded.make_tokenizer out/tiny/tokenizer
"$bin/reasonseg" train configs/tiny.yaml
"$bin/reasonseg" train recipes/embedded/configs/references.yaml start=out/tiny/model
"$bin/reasonseg" train recipes/embedded/configs/joint.yaml stages.coder.options.coder=out/tiny/finish/finished.safetensors
"$bin/reasonseg" train recipes/embedded/configs/shots.yaml
"$bin/reasonseg" train recipes/embedded/configs/settle.yaml stages.coder.options.coder=out/tiny/finish/finished.safetensors
"$bin/reasonseg" train recipes/embedded/configs/properties.yaml start=out/tiny_settle/model
"$bin/python" -m recipes.embedded.average out/tiny_properties/model out/tiny_properties/meaning/finished.safetensors out/tiny_average
"$bin/python" -m recipes.embedded.grow_decoder out/tiny_average 336 out/grown_sharp
"$bin/reasonseg" train recipes/embedded/configs/sharp.yaml
"$bin/python" -m recipes.embedded.average out/tiny_sharp/model out/tiny_sharp/sharp/finished.safetensors out/tiny_sharp_average
"$bin/reasonseg" train recipes/embedded/configs/examples.yaml
test -f out/coder/fitted.safetensors || "$bin/python" -m recipes.embedded.fit_coder out/tiny_examples/model out/coder/fitted.safetensors
"$bin/reasonseg" train recipes/embedded/configs/wordings.yaml start=out/tiny_examples/model
"$bin/python" -m recipes.embedded.average out/tiny_examples/model out/tiny_wordings/words/finished.safetensors out/tiny_wordings_average
"$bin/reasonseg" train recipes/embedded/configs/hints.yaml
"$bin/python" -m recipes.embedded.average out/tiny_wordings_average out/tiny_hints/hints/finished.safetensors out/tiny_hints_average
test -f out/coder/hints.safetensors || "$bin/python" -m recipes.embedded.fit_coder out/tiny_hints_average out/coder/hints.safetensors
"$bin/reasonseg" train recipes/embedded/configs/apart.yaml
"$bin/reasonseg" train recipes/embedded/configs/examples.yaml start=out/tiny_apart/model out=out/tiny_apart_examples
"$bin/python" -m recipes.embedded.ship_tiny out/tiny_apart_examples/model
"$bin/reasonseg" train recipes/embedded/configs/seggpt.yaml
"$bin/python" -m recipes.embedded.ship_tiny out/tiny_seggpt/model --as tiny_seggpt
