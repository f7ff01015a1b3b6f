"""What may go wrong between the broker and its disk, sorted by who must act.

Every message is one line that says what is wrong and what to do. An error that only a programmer
can cause is an assert, and not here.
"""

import errno
from enum import Enum


class Shortage(Enum):
    """Something that the disk or the system has too little of now, and may have again later.

    A call that fails for a shortage has changed nothing, or reports what it has changed; it can be
    tried again. `advice` says what an operator can do.
    """

    SPACE = "space on the disk"
    DESCRIPTORS = "file descriptors"

    @property
    def advice(self) -> str:
        return "make some" if self is Shortage.SPACE else "raise `ulimit -n`"


_SHORTAGES = {
    errno.ENOSPC: Shortage.SPACE,
    errno.EDQUOT: Shortage.SPACE,
    errno.EFBIG: Shortage.SPACE,
    # Only opening a file raises these two, before anything changed.
    errno.EMFILE: Shortage.DESCRIPTORS,  # the limit of this process
    errno.ENFILE: Shortage.DESCRIPTORS,  # the limit of the system
}


class StorageError(Exception):
    """The root of all that storage raises; `str()` is one line for the operator."""


class DirectoryLocked(StorageError):
    """Another broker runs on this directory."""


class OtherFormat(StorageError):
    """Another qlog wrote the directory: a newer one, or an older one with another format."""


class DirectoryUnreadable(StorageError):
    """The directory cannot be used: missing rights, not a directory, damaged definitions."""


class CorruptLog(StorageError):
    """Data that had been promised to be on disk is damaged or missing."""


class PositionGone(StorageError):
    """The journal does not go back to a position: who wants to follow begins with the snapshot."""


class OutOfDescriptors(StorageError):
    """A file could not be opened now. Nothing is wrong with it: the same can be tried again."""


class SyncFailed(StorageError):
    """A sync failed. It is never retried: a second one can falsely succeed."""


def shortage_of(error: BaseException) -> Shortage | None:
    """The shortage that an error means; None when the error means something else."""
    return _SHORTAGES.get(error.errno or 0) if isinstance(error, OSError) else None


def is_shortage(error: BaseException) -> bool:
    """Whether the error means that the same can be tried again later."""
    return shortage_of(error) is not None
