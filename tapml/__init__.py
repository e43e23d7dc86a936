"""TapML: carve operator tests out of a working PyTorch model and migrate it, operator by operator, to young platforms."""

__version__ = "0.1.0"
