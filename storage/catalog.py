"""The definitions of a directory, by kind and name: all are in memory, and durable by the ledger.

Every change is a record of the ledger, in the order of the changes. A change is durable when the
ledger is synced behind it (`Store.definitions_synced`). The ledger's snapshot carries all
definitions, so LMDB's catalog (lmdb/catalog.py) is only a checkpoint of them, as the index is:
a start can make it anew. This file does not know what a kind or a value means.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from qlog.storage.journal import Defined

Definition = tuple[str, str]  # kind, name


class Catalog:
    """See the head of this file.

    Arguments: `entries` are the definitions that a start found; `note` takes what changes,
    for the ledger.
    """

    def __init__(
        self, entries: Mapping[Definition, bytes], note: Callable[[list[Defined]], object]
    ) -> None:
        self._entries: dict[str, dict[str, bytes]] = {}
        for (kind, name), value in entries.items():
            self._entries.setdefault(kind, {})[name] = value
        self._note = note
        self._changed: dict[Definition, bytes | None] = {}  # since the last checkpoint
        self._defined: dict[Definition, Defined] = {  # kept, since all are asked for at once
            key: Defined(*key, value) for key, value in entries.items()
        }
        self._undo: list[tuple[str, str, bytes | None]] | None = None  # in a transaction

    def get(self, kind: str, name: str) -> bytes | None:
        """The value under this name, or None."""
        return self._entries.get(kind, {}).get(name)

    def items(self, kind: str) -> list[tuple[str, bytes]]:
        """All names and values of a kind, by name."""
        return sorted(self._entries.get(kind, {}).items())

    def put(self, kind: str, name: str, value: bytes) -> None:
        """Set a value."""
        self._set(kind, name, value)

    def delete(self, kind: str, name: str) -> bool:
        """Remove a value; returns whether there was one."""
        if self.get(kind, name) is None:
            return False
        self._set(kind, name, None)
        return True

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the block becomes durable together; an exception undoes all of it."""
        if self._undo is not None:
            yield
            return
        undo = self._undo = []
        try:
            yield
        except BaseException:
            for kind, name, value in reversed(undo):
                self._place(kind, name, value)
            raise
        finally:
            self._undo = None
        if undo:
            changed = dict.fromkeys((kind, name) for kind, name, _ in undo)
            self._publish(changed)

    def records(self) -> list[Defined]:
        """All definitions, for the ledger's snapshot."""
        return list(self._defined.values())

    @property
    def changed(self) -> bool:
        """Something changed since the last checkpoint."""
        return bool(self._changed)

    def take_changed(self) -> dict[Definition, bytes | None]:
        """The definitions that changed since the last call; the value None: it was deleted."""
        changed, self._changed = self._changed, {}
        return changed

    def _set(self, kind: str, name: str, value: bytes | None) -> None:
        before = self.get(kind, name)
        self._place(kind, name, value)
        if self._undo is None:
            self._publish({(kind, name): None})
        else:
            self._undo.append((kind, name, before))

    def _place(self, kind: str, name: str, value: bytes | None) -> None:
        entries = self._entries.setdefault(kind, {})
        if value is None:
            entries.pop(name, None)
        else:
            entries[name] = value

    def _publish(self, changed: Mapping[Definition, object]) -> None:
        entries = []
        for key in changed:
            value = self.get(*key)
            entry = Defined(*key, value)
            entries.append(entry)
            self._changed[key] = value
            if value is None:
                self._defined.pop(key, None)
            else:
                self._defined[key] = entry
        self._note(entries)
