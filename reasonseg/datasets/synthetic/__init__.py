"""Drawn scenes: cut-outs on backgrounds, with exact masks and sentences about them.

`sprites` holds the cut-outs, `knowledge` what is known of the things they show, `drawing` places
them, `questions` asks about them. `datasets/scenes.py` makes samples of it all.
"""
