"""What the end of a program means for work that is still under way."""

from __future__ import annotations

import atexit
import sys
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exo.gpu.coordination.dispatcher import Dispatcher


def end_with_program(dispatcher: Dispatcher) -> None:
    """Close a dispatcher at the program's end: once its work is done, or at once by Ctrl-C."""
    reference = weakref.ref(dispatcher)  # its own thread holds it while there is work

    def end() -> None:
        here = reference()
        if here is not None:
            here.close(kill=_by_interrupt())

    atexit.register(end)
    weakref.finalize(dispatcher, atexit.unregister, end).atexit = False


def _by_interrupt() -> bool:
    """Whether an interrupt that nobody caught ends this program."""
    if hasattr(sys, "ps1"):
        return False  # at a prompt an interrupt ends a statement only, perhaps one of long ago
    return isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
