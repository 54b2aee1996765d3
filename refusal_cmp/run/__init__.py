"""The run directory: its files and manifest, work in progress, what is in it, and one command at work on it."""
