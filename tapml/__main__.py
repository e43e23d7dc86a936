"""`python -m tapml`: the same as the `tapml` command."""

import atexit
import os
import sys

from tapml.cli.main import main
from tapml.cli.verb import INTERRUPTED

code = main()
if code == INTERRUPTED:
    # CPython remembers a Ctrl-C that hit code made from text (dataclasses and torch make such code), even when it was caught, and
    # under -m would then end by the signal instead of returning 130. So leave without it, as multiprocessing's children do.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
