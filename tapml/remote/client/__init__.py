"""The client, a device like any other to the rest of TapML that is reached through a hub."""
