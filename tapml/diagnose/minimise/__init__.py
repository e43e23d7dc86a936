"""The smallest case that still fails, and the reproducer that is made of it."""
