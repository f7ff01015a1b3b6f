"""How LMDB's files are opened: its own settings in one place, and one check that it does not make.

LMDB maps its file and trusts it: a page behind the file's end would end the process with SIGBUS. So
a file that is shorter than its own account of itself is refused here.
"""

from __future__ import annotations

from pathlib import Path

import lmdb


def open_environment(
    directory: Path, *, map_bytes: int, dbs_max: int, read_only: bool, lock: bool
) -> lmdb.Environment:
    """Open, or make, the environment in a directory.

    `lock=False` uses no lock file: for one that is read where nobody can have it open for writing.
    Raises lmdb.Error.
    """
    assert lock or read_only
    environment = lmdb.open(
        str(directory),
        map_size=map_bytes,
        max_dbs=dbs_max,
        readonly=read_only,
        create=not read_only,
        sync=True,
        metasync=True,
        writemap=False,
        readahead=False,
        lock=lock,
        mode=0o640,
    )
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = (directory / "data.mdb").stat().st_size
    if size < needed:
        environment.close()
        raise lmdb.CorruptedError(f"data.mdb is cut off: it has {size} bytes and needs {needed}")
    return environment
