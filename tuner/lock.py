"""One coordinator at a time: what a coordinator holds while it may write a study, and loses when it dies.

A SQLite file is locked as a whole, by a file beside it. On a server a study is locked by its name, through a connection
that does nothing else: the server lets go of the lock when that connection ends, however its process died (if the whole
machine vanished: when the server gives the connection up). So the URL must lead to the server itself, or to a pooler
that keeps a session on one connection (PgBouncer: not in transaction mode), and a MySQL cluster must be written through
one node.

The tests run a PostgreSQL server. What MySQL is told was tried by hand, on MariaDB 10.11 through pymysql.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from tuner.errors import BadInput
from tuner.storage import parsed, sqlite_path


class Held(Exception):
    """Another coordinator has the lock."""


class Lock:
    """What holds nothing: for a record in memory, which nobody else sees, and for one that is only read."""

    def check(self) -> None:
        """Raise BadInput unless the lock is still held; asked before each write."""

    def release(self) -> None:
        """Let go, so that the next coordinator can begin; again: nothing."""


class FileHeld(Lock):
    """A SQLite file, locked through a file beside it, which the system unlocks when its process dies."""

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise BadInput(f"storage: the folder {str(path.parent)!r} does not exist; create it or change the URL")
        self._lock = FileLock(f"{path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Held from None
        except OSError as error:
            law = f"storage: {self._lock.lock_file!r} cannot be written"
            raise BadInput(f"{law}: {error.strerror}; check the folder") from None

    def release(self) -> None:
        """Its file is removed first: who opened that file before finds it gone, and is refused."""
        if self._lock.is_locked:
            with suppress(OSError):
                os.unlink(self._lock.lock_file)
            self._lock.release()


@dataclass(frozen=True)
class Dialect:
    """What a server is told. A name is locked by `key`, so that it may be of any length.

    Args:
        stay: not to hang up on a connection that is idle for as long as a training run.
        take: true when the lock was free. free: let go of it.
        session: the connection's number: the lock is held as long as it is the same.
    """

    stay: str
    take: str
    free: str
    session: str


POSTGRESQL = Dialect(
    stay="SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'",
    take="SELECT pg_try_advisory_lock(:key)",
    free="SELECT pg_advisory_unlock(:key)",
    session="SELECT pg_backend_pid()",
)
_NAME = "SHA2(CONCAT(LOWER(DATABASE()), ' ', :key), 224)"  # its locks are of a whole server, not of one database
MYSQL = Dialect(
    stay="SET SESSION wait_timeout = 31536000",
    take=f"SELECT GET_LOCK({_NAME}, 0)",
    free=f"SELECT RELEASE_LOCK({_NAME})",
    session="SELECT CONNECTION_ID()",
)
SERVERS = {"postgresql": POSTGRESQL, "mysql": MYSQL, "mariadb": MYSQL}


class SessionHeld(Lock):
    """A study of a server, locked through a connection of its own, open until it is released."""

    def __init__(self, url: str, name: str, dialect: Dialect) -> None:
        self._name, self._dialect, self._key = name, dialect, key(name)
        engine = create_engine(url, poolclass=NullPool, pool_reset_on_return=None, isolation_level="AUTOCOMMIT")
        self._connection = engine.connect()
        try:
            self._connection.execute(text(dialect.stay))
            self._session = self._asked(dialect.session)
            if not self._asked(dialect.take, key=self._key):
                raise Held
        except BaseException:
            self._connection.close()
            raise

    def _asked(self, statement: str, **values: Any) -> Any:
        return self._connection.execute(text(statement), values).scalar()

    def check(self) -> None:
        try:
            held = self._asked(self._dialect.session) == self._session
        except SQLAlchemyError:
            held = False
        if not held:
            raise BadInput(
                f"record: the lock on {self._name!r} was lost, its connection to the server is gone; "
                "run the same command again"
            )

    def release(self) -> None:
        """Said, not only hung up: a server may notice that a moment later than the next coordinator begins."""
        if not self._connection.closed:
            with suppress(SQLAlchemyError):
                self._asked(self._dialect.free, key=self._key)
            self._connection.close()


def take(url: str | None, name: str) -> Lock:
    """The lock of a study, taken.

    Raises:
        Held: another coordinator has it.
        BadInput: there is no way to lock that database, or no folder to lock its file in.
        SQLAlchemyError, ImportError: the server cannot be reached, or there is no driver for it.
    """
    backend = "sqlite" if url is None else parsed(url).get_backend_name()
    if url is None or backend == "sqlite":
        path = sqlite_path(url)
        return Lock() if path is None else FileHeld(path)
    if backend not in SERVERS:
        raise BadInput(
            f"storage: must be SQLite, PostgreSQL, MySQL or MariaDB, where a second writer can be refused, "
            f"got {backend!r}; change the URL"
        )
    return SessionHeld(url, name, SERVERS[backend])


def key(name: str) -> int:
    """A study's name as 64 bits with a sign, the same in every version: what PostgreSQL can lock."""
    digest = blake2b(f"transfer-tuner {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
