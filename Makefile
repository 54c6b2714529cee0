# make setup: a .venv here with everything the tests need · make demo · make test · make check
PYTHON ?= python3
BIN := .venv/bin
EMOJI := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

.PHONY: setup demo test check format clean
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,sam,quant,train,serve,fleet]'
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py out/demo

test: setup font browser
	$(BIN)/python -m pytest tests

check: setup
	$(BIN)/ruff format --check reasonseg scripts tests
	$(BIN)/ruff check reasonseg scripts tests
	$(BIN)/pyright

format: setup
	$(BIN)/ruff format reasonseg scripts tests
	$(BIN)/ruff check --fix reasonseg scripts tests

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
