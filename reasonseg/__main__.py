"""`python -m reasonseg` is the command `reasonseg`."""

from reasonseg.cli.main import console

if __name__ == "__main__":
    console()
