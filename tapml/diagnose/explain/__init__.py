"""The stage at which an operator goes wrong, by evidence."""
