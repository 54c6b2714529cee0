"""Objectives of training stages, one file each; `objective: language` in YAML is `language.py`."""
