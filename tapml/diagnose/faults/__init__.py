"""The fault catalogue: 34 classes of real deployment bugs, of one operator or of a bundle's plan (`catalogue.py` lists them)."""
