"""The command line. Each file of this folder is one group of commands.

New files are found without a registration. `options.py` defines what a command is. Heavy libraries
are imported only where they are needed.
"""
