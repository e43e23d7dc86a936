"""What executes operators: `interface.py` says what a backend is, `open.py` opens one by its target's name."""
