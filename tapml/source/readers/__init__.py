"""The forms in which a model is named on the command line, one file each."""
