"""What is served beside the API, for people."""

from __future__ import annotations

from qlog.server.http.answers import Answer
from qlog.server.http.ask import Ask
from qlog.server.http.table import Endpoint

_PAGE = b"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>qlog</title></head>
<body><h1>qlog</h1><p>The management API is below <a href="api/overview">/api</a>.</p></body>
</html>
"""


async def page(ask: Ask) -> Answer:
    """A page that says where the API is."""
    return Answer(body=_PAGE, content_type="text/html; charset=utf-8")


PAGES = [Endpoint("GET", "/", page, "Where the API is", tag="any", content_type="text/html")]
