"""The one error of dtviz's own that a caller may want to catch."""


class Unavailable(FileNotFoundError):
    """A known pair or embedder whose weights or package are not on this machine; the message says how to get them.

    It is a FileNotFoundError, so that code which knows nothing of dtviz can catch it too.

        try:
            pair = dtviz.load("sdxl-dmd")
        except dtviz.Unavailable as error:
            print(error)
    """
