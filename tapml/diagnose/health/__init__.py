"""Overflow, underflow, NaN and Inf back to the operator that made them."""
