"""Loading torch and its like makes 200,000 objects and no garbage: nothing for Python's collector to look for."""

import gc


def begin_loading() -> None:
    """Switch the garbage collector off, at the start of the process; it would take a fifth of the loading time."""
    gc.disable()


def end_loading() -> None:
    """Switch it on again where `begin_loading` has switched it off; objects that are there by now it then ignores."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
