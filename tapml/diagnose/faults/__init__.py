"""The fault catalogue: 28 classes of real deployment bugs that can be put into one operator (`catalogue.py` lists them)."""
