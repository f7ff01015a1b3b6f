"""The table of all settings in docs/operations.md, made of their definitions.

    python -m qlog.tools.settings_table docs/operations.md

puts it between its two markers; a test sees to it that this was done after the last change.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qlog.server.config import Setting, definitions

BEGIN = "<!-- settings: made by `python -m qlog.tools.settings_table docs/operations.md` -->"
END = "<!-- /settings -->"


def table() -> str:
    """The table in Markdown, without the markers."""
    lines = ["| setting | default | range | |", "|---|---|---|---|"]
    title = ""
    for setting in definitions().values():
        if setting.title != title:
            title = setting.title
            lines.append(f"| **{title}** | | | |")
        lines.append(_row(setting))
    return "\n".join(lines)


def _row(setting: Setting) -> str:
    default = f"`{setting.default_text}`"
    allowed = ", ".join(setting.choices) or setting.range_text
    unit = f" {setting.unit}" if setting.unit else ""
    also = f" Also `{setting.also}`." if setting.also else ""
    no_option = "" if setting.is_option else " Not an option."
    return f"| `{setting.name}` | {default}{unit} | {allowed} | {setting.help}{also}{no_option} |"


def updated(page: str) -> str:
    """The page with the table between its markers. Raises ValueError if it has none."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError("the page has no markers for the table")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(updated(path.read_text()))
