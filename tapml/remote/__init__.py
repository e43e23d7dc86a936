"""Devices on other machines: the hub, the agent, the wire between them, and the client. See docs/wire.md."""
