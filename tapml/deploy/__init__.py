"""Shipping what was tested: bundles, and running them."""
