"""Data sets of samples. One file per kind; `layouts/` reads your own folders, and `synthetic/`
draws scenes.
"""
