"""A file read from its beginning; no claim beyond its end is believed."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Self

from exo.gpu.vocabulary.errors import ModelError

if TYPE_CHECKING:
    from types import TracebackType

_BUFFER_BYTES = 2**16


class HeaderFile:
    """An open file of a known size; every claim of a length is held against what is left of it.

    Raises:
        ModelError: for what is no regular file, or cannot be opened.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"{path} is no regular file")
            self._file = path.open("rb", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
        self.size = status.st_size

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self._file.close()

    @property
    def left(self) -> int:
        """Bytes between here and the end."""
        return self.size - self._file.tell()

    def take(self, count: int, what: str) -> bytes:
        """The next bytes, all of them.

        Raises:
            ModelError: where the file ends before, naming ``what`` was read.

        """
        found = self._file.read(count) if count <= self.left else b""
        if len(found) != count:
            raise self.truncated(what, count)
        return found

    def skip(self, count: int, what: str) -> None:
        """Pass over the next bytes.

        Raises:
            ModelError: where the file ends before.

        """
        if count > self.left:
            raise self.truncated(what, count)
        self._file.seek(count, 1)

    def truncated(self, what: str, count: int) -> ModelError:
        """That the file ends within its header."""
        at = self._file.tell()
        return ModelError(
            f"{self.path}: the header is truncated: {what} takes {count} bytes at {at}, "
            f"and the file has {self.size} in all"
        )
