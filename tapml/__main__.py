"""`python -m tapml`: the same as the `tapml` command."""

from tapml.cli.main import entry

entry()
