"""The fault bench: every class of faults, TapML's way to them, and seven others."""
