"""What a sample says beside its numbers, kept once however many samples say it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

# Devices differ in what they cannot tell, samples of one device hardly ever: this is plenty.
MAX_REMARKS = 4096
# A driver's dozen reasons of a line each; what a stranger sends beyond that fills no memory.
MAX_CHARACTERS = 2048

# A dict entry, a tuple of pairs and a struct, measured with sys.getsizeof.
_REMARK_BYTES = 700

Key = tuple[bool, bool, tuple[str, ...] | None, tuple[tuple[str, str], ...]]


class Remark(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a sample that hold no number, as in ``GPUMetrics``."""

    sleeping: bool = False
    utilization_is_lower_bound: bool = False
    throttle_reasons: tuple[str, ...] | None = None
    missing_reasons: Mapping[str, str] = {}


class Remarks:
    """Remarks by a small number. The first four are the two flags without a text.

    Where there are more than ``MAX_REMARKS`` different ones in use, or one is longer than
    ``MAX_CHARACTERS``, it is kept as its flags alone.
    """

    def __init__(self) -> None:
        self._codes: dict[Key, int] = {}
        self._remarks: list[Remark | None] = []
        self._free: list[int] = []
        self._characters = 0
        for lower_bound in (False, True):
            for sleeping in (False, True):
                self.code(sleeping, lower_bound, None, {})

    def __getitem__(self, code: int) -> Remark:
        remark = self._remarks[code]
        assert remark is not None  # a code is dropped only when nothing holds it
        return remark

    @property
    def crowded(self) -> bool:
        """Whether it is time to :meth:`drop` what nobody uses any more."""
        return len(self._codes) > MAX_REMARKS * 3 // 4

    @property
    def memory_bytes(self) -> int:
        """An estimate of what they take."""
        return len(self._codes) * _REMARK_BYTES + self._characters

    def code(
        self,
        sleeping: bool,
        utilization_is_lower_bound: bool,
        throttle_reasons: tuple[str, ...] | None,
        missing_reasons: Mapping[str, str],
    ) -> int:
        """The number of this remark, a new one if need be."""
        reasons = tuple(missing_reasons.items()) if missing_reasons else ()
        key = (sleeping, utilization_is_lower_bound, throttle_reasons, reasons)
        found = self._codes.get(key)
        if found is not None:
            return found
        size = _characters(key)
        if len(self._codes) >= MAX_REMARKS or size > MAX_CHARACTERS:
            return sleeping + 2 * utilization_is_lower_bound
        remark = Remark(
            sleeping=sleeping,
            utilization_is_lower_bound=utilization_is_lower_bound,
            throttle_reasons=throttle_reasons,
            missing_reasons=dict(reasons),
        )
        self._characters += size
        if self._free:
            code = self._free.pop()
            self._remarks[code] = remark
        else:
            code = len(self._remarks)
            self._remarks.append(remark)
        self._codes[key] = code
        return code

    def drop(self, used: Iterable[int]) -> None:
        """Forget all but ``used``."""
        keep = {*used, 0, 1, 2, 3}
        for key, code in list(self._codes.items()):
            if code not in keep:
                del self._codes[key]
                self._remarks[code] = None
                self._free.append(code)
                self._characters -= _characters(key)


def _characters(key: Key) -> int:
    return sum(map(len, key[2] or ())) + sum(len(name) + len(why) for name, why in key[3])
