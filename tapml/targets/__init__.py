"""What can be compiled for, one file a target."""
