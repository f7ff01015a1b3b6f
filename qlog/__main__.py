"""`python -m qlog` is the `qlog` command."""

from qlog.tools.cli import app

if __name__ == "__main__":
    app()
