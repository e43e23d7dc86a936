"""The model where it already works: loading, exporting and running it in PyTorch."""
