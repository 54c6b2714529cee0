"""The one error a user can mend: it names the file or field, the value and the remedy."""


class InputError(ValueError):
    """Bad input. The command line prints it as one line and exits with code 2."""
