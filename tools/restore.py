"""`qlog restore`: a backup becomes a data directory that `qlog serve` takes."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer


def restore(
    backup: Annotated[Path, typer.Argument(help="The directory of the backup.")],
    data_dir: Annotated[
        Path,
        typer.Option(envvar="QLOG_DATA_DIR", help="What to make of it: missing, or empty."),
    ] = Path("qlog-data"),
) -> None:
    """Make a data directory of a backup (`qlog ctl backup`).

    All is compared with what was stored; if a byte is wrong, nothing is made.
    """
    from qlog.storage.bytes.disk import OSDisk
    from qlog.storage.errors import StorageError
    from qlog.storage.start.restore import restore as restored

    try:
        manifest = restored(OSDisk(), backup.resolve(), data_dir.resolve())
    except StorageError as error:
        print(f"qlog: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        print(f"qlog: cannot restore:{where} {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(1) from error
    taken = datetime.fromtimestamp(manifest.taken_ms / 1000, UTC).isoformat(timespec="seconds")
    size = sum(file.bytes for file in manifest.files)
    print(f"restored {len(manifest.files)} files ({size} bytes) of a backup of {taken}")
    print(f"run it with `qlog serve --data-dir {data_dir}`")
