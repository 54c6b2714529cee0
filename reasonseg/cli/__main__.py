"""Runs the command line as `python -m reasonseg.cli`."""

from reasonseg.cli.main import console

console()
