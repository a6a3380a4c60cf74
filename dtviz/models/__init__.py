"""Which models there are, whether this machine has them, and how they are loaded; `pairs` is the name to reach them by."""
