"""Cutting an exported graph into operators, and running them in PyTorch."""
