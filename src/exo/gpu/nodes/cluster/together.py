"""Asking many nodes at once, also at the end of a program, where no pool can be made any more."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

# So many nodes are asked at the same time.
MOST_AT_ONCE = 32


def together(ask: Callable[[Asked], Answer], whom: Sequence[Asked]) -> list[Answer]:
    """What ``ask`` answers for each, in their order; it may be called from several threads.

    What one call raises is raised here, once all have ended.
    """
    answers: dict[int, Answer] = {}
    failures: list[BaseException] = []
    places = iter(range(len(whom)))
    turn = threading.Lock()

    def work() -> None:
        while True:
            with turn:
                place = next(places, None)
            if place is None:
                return
            try:
                answers[place] = ask(whom[place])
            except BaseException as failure:  # noqa: BLE001 - raised again below
                failures.append(failure)

    threads = [
        threading.Thread(target=work, name="exo-gpu-ask", daemon=True)
        for _ in range(min(MOST_AT_ONCE, len(whom)) - 1)
    ]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [answers[place] for place in range(len(whom))]
