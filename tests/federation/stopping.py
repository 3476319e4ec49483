"""Stops an action before any of its lines, as a signal may stop a process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """As a signal may stop a process between any two lines."""


def stopped_at(line: int, action: Callable[[], object], counts: Callable[[str], bool]) -> bool:
    """Do ``action``, stopped before the line of that number; whether it got so far.

    Args:
        line: the number.
        action: what is stopped.
        counts: whether the lines of a file count.
    """
    seen = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal seen
        if not counts(frame.f_code.co_filename):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise Stopped
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        action()
    except Stopped:
        return True
    finally:
        sys.settrace(before)
    return False
