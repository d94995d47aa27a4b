"""The config: its sections and keys, and how its file is read."""
