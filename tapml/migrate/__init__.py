"""Testing operators on a device, and moving them there one after another."""
