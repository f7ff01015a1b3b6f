"""Traces as strace writes them, and what a directory may be in the middle of one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.images import trace
from tests.images.directory import Directory

ROOT = Path("/data")
OPEN = 'openat(AT_FDCWD, "/data/file", O_RDWR|O_CREAT|O_CLOEXEC, 0640) = 3'
OPEN_ROOT = 'openat(AT_FDCWD, "/data", O_RDONLY|O_CLOEXEC|O_DIRECTORY) = 4'
CREATED = [OPEN, OPEN_ROOT, "fsync(4) = 0"]
AAAA = f'pwritev(3, [{{iov_base="{"a" * 512}", iov_len=512}}, {{iov_base="a", iov_len=1}}], 2, 0) = 513'
BBBB = f'pwrite64(3, "{"b" * 1024}", 1024, 512) = 1024'


def hexed(line: str) -> str:
    """With all text as strace -xx writes it."""
    parts = line.split('"')
    parts[1::2] = ["".join(f"\\x{byte:02x}" for byte in part.encode()) for part in parts[1::2]]
    return '"'.join(parts)


def steps_of(lines: Sequence[str], path: Path) -> list[trace.Step]:
    """The steps of a trace; each line is a call of thread 7, but for those that begin with a number."""
    path.write_text(
        "".join(
            hexed(line if line[0].isdigit() else f"7  {1700000000 + place}.25 {line}") + "\n"
            for place, line in enumerate(lines)
        )
    )
    return trace.read(path)


def test_calls_overlap(tmp_path: Path) -> None:
    steps = steps_of(
        [
            '7 1.5 pwrite64(3, "ab", 2, 10 <unfinished ...>',
            "8 1.6 fdatasync(4 <unfinished ...>",
            "7 1.7 <... pwrite64 resumed>) = 2",
            "9 1.8 fsync(5) = -1 EIO (Input/output error) (INJECTED)",
            "8 1.9 <... fdatasync resumed>) = ?",
            "8 1.9 +++ killed by SIGKILL +++",
            '7 2.0 write(3, "abc", 3',
        ],
        tmp_path / "trace",
    )
    seen = [(step.call.name, step.ends, step.at_s, step.call.result) for step in steps]
    assert seen == [
        ("pwrite64", False, 1.5, 2),
        ("fdatasync", False, 1.6, None),
        ("pwrite64", True, 1.7, 2),
        ("fsync", False, 1.8, -1),
        ("fsync", True, 1.8, -1),
        ("write", False, 2.0, None),
    ]
    assert steps[0].call.strings() == [b"ab"]
    assert steps[0].call.numbers() == [3, 2, 10]
    assert steps[3].call.failed and not steps[1].call.failed
    assert [step.call.injected for step in steps] == [False, False, False, True, True, False]


def images(lines: Sequence[str], tmp_path: Path, kept: str) -> set[bytes | None]:
    """What /data/file may be after these calls: its bytes, or None."""
    directory = Directory(ROOT)
    for step in steps_of(lines, tmp_path / "trace"):
        directory.follow(step)
    seeds = range(300 if kept == "some" else 1)
    return {directory.image(random.Random(seed), kept).get("file") for seed in seeds}


A, B, ZERO = (bytes([value]) * 512 for value in b"ab\0")
FIRST = A + b"a"
PARTS_OF_FIRST = {b"", ZERO + b"\0", A + b"\0", ZERO + b"a", FIRST}


@pytest.mark.parametrize(
    ("lines", "none", "all_", "some"),
    [
        # a name without a sync of its directory
        ([OPEN], None, b"", {None, b""}),
        # bytes without a sync
        ([*CREATED, AAAA], b"", FIRST, PARTS_OF_FIRST),
        # synced; and more after it
        ([*CREATED, AAAA, "fdatasync(3) = 0"], FIRST, FIRST, {FIRST}),
        (
            [*CREATED, AAAA, "fdatasync(3) = 0", BBBB],
            FIRST,
            A + B + B,
            # the second sector is in part of the first write
            {
                *(FIRST, A + b"b", FIRST + bytes(1023), FIRST + bytes(511) + B),
                *(A + B + B, A + B + ZERO),
            },
        ),
        # a sync that failed, and one that has not returned
        ([*CREATED, AAAA, "fdatasync(3) = -1 EIO (I/O)"], b"", FIRST, PARTS_OF_FIRST),
        ([*CREATED, AAAA, "7 1.0 fdatasync(3 <unfinished ...>"], b"", FIRST, PARTS_OF_FIRST),
        # a write that began before the sync and ended after it began is not covered
        (
            [
                *CREATED,
                f'8 1.0 pwrite64(3, "{"a" * 512}", 512, 0 <unfinished ...>',
                "7 1.0 fdatasync(3 <unfinished ...>",
                "8 1.0 <... pwrite64 resumed>) = 512",
                "7 1.0 <... fdatasync resumed>) = 0",
            ],
            b"",
            A,
            {b"", ZERO, A},
        ),
        # O_DSYNC: this write alone
        (
            [
                *CREATED,
                BBBB,
                'openat(AT_FDCWD, "/data/file", O_WRONLY|O_DSYNC|O_CLOEXEC) = 5',
                f'pwrite64(5, "{"a" * 512}", 512, 0) = 512',
            ],
            A,
            A + B + B,
            {A, A + B + B, A + ZERO + ZERO, A + B + ZERO, A + ZERO + B},
        ),
        # reserved, cut
        ([*CREATED, "fallocate(3, 0, 0, 5) = 0"], b"", bytes(5), {b"", bytes(5)}),
        (
            [*CREATED, AAAA, "fdatasync(3) = 0", "ftruncate(3, 2) = 0"],
            FIRST,
            b"aa",
            {FIRST, b"aa"},
        ),
        # lseek and writev, as LMDB does it
        (
            [
                *CREATED,
                "lseek(3, 512, SEEK_SET) = 512",
                f'writev(3, [{{iov_base="{"b" * 512}", iov_len=512}}], 1) = 512',
                f'write(3, "{"a" * 512}", 512) = 512',
                "fsync(3) = 0",
            ],
            ZERO + B + A,
            ZERO + B + A,
            {ZERO + B + A},
        ),
        # removed
        ([*CREATED, 'unlink("/data/file") = 0'], b"", None, {b"", None}),
        ([*CREATED, 'unlink("/data/file") = 0', "fsync(4) = 0"], None, None, {None}),
        (
            [*CREATED, 'unlinkat(4, "file", 0) = 0', OPEN.replace("= 3", "= 6")],
            b"",
            b"",
            {b"", None},
        ),
        # renamed away: both names change together
        ([*CREATED, 'rename("/data/file", "/data/other") = 0'], b"", None, {b"", None}),
    ],
)
def test_what_may_be_there(
    lines: list[str],
    none: bytes | None,
    all_: bytes | None,
    some: set[bytes | None],
    tmp_path: Path,
) -> None:
    assert images(lines, tmp_path, "none") == {none}
    assert images(lines, tmp_path, "all") == {all_}
    found = images(lines, tmp_path, "some")
    assert found == some


@pytest.mark.parametrize(
    "line",
    [
        "dup(3) = 9",
        'link("/data/file", "/data/other") = 0',
        "copy_file_range(8, NULL, 3, NULL, 100, 0) = 100",
        "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0) = 0x7f0000000000",
    ],
)
def test_what_cannot_be_followed_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        images([*CREATED, line], tmp_path, "all")
