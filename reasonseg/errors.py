"""The error for bad input. Its message names the file or field, the value and the remedy."""


class InputError(ValueError):
    """Bad input from the user. The command line prints it as one line and exits with code 2."""
