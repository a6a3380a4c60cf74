"""The one error of dtviz's own that a caller may want to catch."""


class Unavailable(FileNotFoundError):
    """A known pair or embedder whose weights or package are not on this machine; the message says how to get them."""
