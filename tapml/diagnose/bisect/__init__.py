"""The smallest set of operators that makes a migrated model wrong."""
