"""Drawn scenes: cut-outs of objects on backgrounds, with exact masks and questions about them.

`sprites` loads the cut-outs, `knowledge` holds facts about their objects, `drawing` places them and
`questions` makes questions. `datasets/scenes.py` makes samples from these.
"""
