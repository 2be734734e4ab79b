"""Which errors of a device mean that bytes are lost, and not that the moment is a bad one."""

import contextlib
import errno
from collections.abc import Iterator

from consumers.entry import LedgerDamagedError

_LOST = {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EFAULT}
"""EFAULT is what mapped memory says of it (madvise(2))."""


@contextlib.contextmanager
def lost_is_damage(name: str) -> Iterator[None]:
    """Reading a file in here.

    Args:
        name: of the file.

    Raises:
        LedgerDamagedError: the device or the file system says that it has lost these bytes (a bad sector, a checksum of
            its own): the file is restored elsewhere.
        OSError: as it was, for any other reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _LOST:
            raise LedgerDamagedError(f"{name} cannot be read: {error.strerror}") from error
        raise
