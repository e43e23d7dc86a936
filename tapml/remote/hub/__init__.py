"""The hub, which devices connect out to: who may come in, who has which device, and the pages it serves."""
