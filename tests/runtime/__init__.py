"""Tests of what a shipped model needs to run."""
