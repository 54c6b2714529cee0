"""The command line. One file a group of commands, found by walking this folder; `options.py` says
what a command is.
"""
