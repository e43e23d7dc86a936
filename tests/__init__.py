"""What holds for all tests: PyTorch's threads wait without spinning, as under the `tapml` command, so that tests which start
processes of their own do not starve them. Set before anything imports torch."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
