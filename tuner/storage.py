"""Where a record lies: a database URL, what it points to, and how it is printed without its password."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from tuner.errors import BadInput


def parsed(url: str) -> URL:
    """The parts of a URL.

    Raises:
        BadInput: it is none; what may be a password is not in the message.
    """
    try:
        parts = make_url(url)
    except (SQLAlchemyError, ValueError):  # ValueError: its port is not a number
        _, at, rest = str(url).rpartition("@")
        given = f"***@{rest}" if at else url
        raise BadInput(f"storage: must be a database URL, got {given!r}; write sqlite:///study.db") from None
    if "@" in (parts.host or ""):  # the end of a password, which a driver would print as the host it cannot find
        raise BadInput("storage: a URL has one @, before its host, got two; write that of a password as %40")
    return parts


def shown(url: str | None) -> str:
    """A URL to print: without passwords, which a query may hold too; a SQLite file's as it was given."""
    if url is None:
        return "memory"
    parts = parsed(url)
    if parts.get_backend_name() == "sqlite":
        return url
    secret = [key for key in parts.query if "pass" in key.lower()]
    return parts.difference_update_query(secret).render_as_string(hide_password=True)


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file, whatever its name."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def sqlite_path(url: str | None) -> Path | None:
    """The SQLite file behind a URL; None where there is none."""
    parts = parsed(url) if url is not None else None
    if parts is None or parts.get_backend_name() != "sqlite" or parts.database in (None, "", ":memory:"):
        return None
    return Path(str(parts.database))
