"""An existing deployment against the run: which of its values are the model's, and which is the first that is wrong."""
