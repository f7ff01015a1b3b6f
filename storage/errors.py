"""What may go wrong between the broker and its disk, by who must act.

Every message is one line that says what is the matter and what to do. This file knows no reasons
beyond those: an error that only a programmer can cause is an assert, not an exception.
"""

import errno

# What a full disk, a full quota and a file size limit have in common: it can end by itself.
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Of this process, of the system. Only what opens a file can meet them, and has done nothing then.
DESCRIPTOR_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE})


class StorageError(Exception):
    """The root of all that storage raises; `str()` is one line for the operator."""


class DirectoryLocked(StorageError):
    """Another broker runs on this directory."""


class OtherFormat(StorageError):
    """Another qlog wrote the directory: a newer one, or one from before the first release."""


class DirectoryUnreadable(StorageError):
    """The directory cannot be used: missing rights, not a directory, damaged definitions."""


class CorruptLog(StorageError):
    """Data that had been promised to be on disk is damaged or missing."""


class OutOfDescriptors(StorageError):
    """A file could not be opened now. Nothing is wrong with it: the same can be tried again."""


class SyncFailed(StorageError):
    """A sync failed. It is never retried: a second one can falsely succeed."""


def is_full(error: BaseException) -> bool:
    """Whether the error means that there is no space now, and may be again later.

    Or no file descriptor: what could not be opened is tried again in the same way.
    """
    return lacks_descriptors(error) or (isinstance(error, OSError) and error.errno in FULL_ERRNOS)


def lacks_descriptors(error: BaseException) -> bool:
    """Whether the error means that no file can be opened now, and may be again later."""
    return isinstance(error, OSError) and error.errno in DESCRIPTOR_ERRNOS
