"""Diagnosis: which operators break a model, at which stage, and the smallest reproducer; the fault catalogue that proves it."""
