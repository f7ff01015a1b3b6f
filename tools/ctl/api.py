"""The management API, asked over the socket in the broker's data directory, or over TCP."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

SOCKET_NAME = "ctl.sock"
# Paths of Unix sockets end here; a longer one is reached by way of its directory's descriptor.
UNIX_PATH_BYTES_MAX = 100
DEFAULT_TIMEOUT_S = 60.0


class ApiError(Exception):
    """The API refused: the status of HTTP, and why, in RabbitMQ's words."""

    def __init__(self, status: int, reason: str, document: Any = None) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
        self.document = document


class Unreachable(Exception):
    """Nobody answers at the address."""


class NoApi(Unreachable):
    """Something answers that is no management API."""


class BadUrl(ValueError):
    """The address is none; str() is one line that says how it has to look."""


class Api:
    """One client. `url` is `http://USER:PASSWORD@HOST:PORT`; without it the socket is asked.

    Every request has its own connection: commands ask once or twice. `timeout_s` bounds each wait.
    Raises BadUrl.
    """

    def __init__(
        self, data_dir: str, url: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        if url is not None:
            _check(url)
        self.data_dir = data_dir
        self.url = url
        self.timeout_s = timeout_s

    @property
    def address(self) -> str:
        """Where the broker is asked."""
        if self.url is None:
            return os.path.join(self.data_dir, SOCKET_NAME)
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}"

    def ask(
        self,
        method: str,
        parts: Sequence[str],
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """What the path `/api/PART/PART` answers, from its JSON; None for nothing.

        Raises ApiError and Unreachable (NoApi among it).
        """
        data = None if body is None else json.dumps(body).encode()
        return self._request(method, parts, data, "application/json", query, headers)

    def send(
        self,
        method: str,
        parts: Sequence[str],
        content: bytes,
        *,
        query: Mapping[str, str] | None = None,
    ) -> Any:
        """The same for a body that is no JSON."""
        return self._request(method, parts, content, "application/octet-stream", query, None)

    def _request(
        self,
        method: str,
        parts: Sequence[str],
        content: bytes | None,
        content_type: str,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
    ) -> Any:
        path = "/api/" + "/".join(quote(part, safe="") for part in parts)
        if query:
            path += f"?{urlencode(query)}"
        sent = {"content-type": content_type, **self._login(), **(headers or {})}
        try:
            with closing(self._connection()) as connection:
                connection.request(method, path, content, sent)
                response = connection.getresponse()
                answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise Unreachable(why or str(error)) from error
        if response.status >= 300:
            raise _refusal(response.status, answer)
        try:
            return json.loads(answer) if answer.strip() else None
        except ValueError:
            raise NoApi("something is there, but no management API (its port is 15672)") from None

    def node(self) -> str:
        """The name of the broker's node."""
        name: str = self.ask("GET", ("overview",), query={"columns": "node"})["node"]
        return name

    def refusal(self, error: ApiError) -> str:
        """Who refuses what, for a refusal that no command knows better."""
        if error.status != 401:
            return f"{self.address} refuses: {error.reason}"
        user = unquote(urlsplit(self.url or "").username or "")
        wrong = error.reason.lower() in ("not_authorized", "login failed")
        why = "wrong name or password" if wrong else error.reason
        return f"{self.address} refuses user '{user}': {why}"

    def _login(self) -> dict[str, str]:
        if self.url is None:
            return {}
        parts = urlsplit(self.url)
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        return {"authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}

    def _connection(self) -> http.client.HTTPConnection:
        if self.url is None:
            return _OwnersConnection(self.address, self.timeout_s)
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else None
        return (kind or http.client.HTTPConnection)(
            parts.hostname or "localhost", parts.port, timeout=self.timeout_s
        )


class _OwnersConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        if len(os.fsencode(self._path)) <= UNIX_PATH_BYTES_MAX:
            self.sock.connect(self._path)
            return
        directory = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        finally:
            os.close(directory)


def _check(url: str) -> None:
    """Raises BadUrl."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        good = False
    if not good:
        raise BadUrl("the address of a broker looks like http://USER:PASSWORD@HOST:15672")


def _refusal(status: int, content: bytes) -> ApiError:
    try:
        document = json.loads(content)
    except ValueError:
        return ApiError(status, content.decode("utf-8", "replace").strip() or str(status))
    if isinstance(document, dict):
        reason = document.get("reason", document.get("error", status))
        return ApiError(status, reason if isinstance(reason, str) else str(reason), document)
    return ApiError(status, str(document), document)
