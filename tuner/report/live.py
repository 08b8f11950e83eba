"""The live page: a study's report over HTTP, drawn again when its record changes.

One thread looks at the record and draws, then draws nothing for three times as long as that took: a dashboard must not
slow the training. A request is only handed what was drawn last: `/` is the page, `/version` says which state of the
record it shows, and in one line what is to be known beside it. The record is only read: `tuner run` may be writing it.
"""

from __future__ import annotations

import ctypes
import json
import math
import socket
import socketserver
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tuner.errors import BadInput
from tuner.objective import one_line
from tuner.opening import open_pilot
from tuner.record import Record, exists
from tuner.report.page import page, waiting
from tuner.studyfile import StudyFile, read

REST = 3.0  # pause after a page, or after a look, in times of what it took
LEAST = 1.0  # seconds of a pause
SOON, GRACE = 0.3, 10.0  # seconds a thread has to end by itself, and to give up a page half drawn


@dataclass(frozen=True)
class Shown:
    """What is handed out.

    Args:
        version: of the record; empty: nothing is drawn yet.
        html: the page.
        beside: a line about it; empty where it says all.
    """

    version: str
    html: bytes
    beside: str = ""


class Drawing:
    """The page of a study file, kept as its record is by a thread of its own, inside `with`.

    Raises:
        BadInput: the study file is bad. What is wrong later is a line beside the page, until it is right again.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.shown = Shown("", waiting(read(path).study.name).encode())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="tuner-page", daemon=True)

    def __enter__(self) -> Drawing:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A page half drawn is given up: a thread inside torch when Python ends would abort the process."""
        self._ended.set()
        self._thread.join(SOON)
        if self._thread.is_alive():
            thread = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))
            self._thread.join(GRACE)

    def _draw(self) -> None:
        due = rest = 0.0
        while not self._ended.wait(rest):
            began, drawn = time.monotonic(), False
            try:
                drawn = self._look(due)
            except (Exception, SystemExit) as error:  # SystemExit: of a module that is a script, or of our own end
                self._say(str(error) if isinstance(error, BadInput) else one_line(error))
            now = time.monotonic()
            rest = max(LEAST, REST * (now - began))
            if drawn:  # looking goes on in the meantime
                due, rest = now + rest, LEAST

    def _look(self, due: float) -> bool:
        """Draw the record if it is another than the page's, and the time has come; whether it was drawn."""
        file = read(self._path)
        held = _held(file)
        version = blake2b(repr(held).encode(), digest_size=8).hexdigest()
        changed, left = version != self.shown.version, due - time.monotonic()
        if changed and left > 0:
            self._say(f"The record has changed; the page follows in {math.ceil(left)} s.")
            return False
        if changed:
            self._say("Drawing what is new ...")
            with open_pilot(file) as study:
                self.shown = Shown(version, page(study, version).encode())
        self._say("" if held else f"No trial yet; tuner run {self._path.name} makes the first.")
        return changed

    def _say(self, beside: str) -> None:
        self.shown = replace(self.shown, beside=beside)


def _held(file: StudyFile) -> list[Any]:
    """Of a record every trial's number and state; of a table what tells that it was written again."""
    if file.objective is None:
        assert file.runs is not None
        table = file.path.parent / file.runs.path
        return [(s := table.stat()).st_mtime_ns, s.st_size] if table.exists() else []
    if not exists(file.storage, file.study.name):
        return []
    with closing(Record(file.storage, file.study.name, read_only=True)) as record:
        return [] if record.foreign else [(e.trial.number, e.state) for e in record.entries()]


class Dashboard(ThreadingHTTPServer):
    """The live page of a study file at a host and port; `serve_forever` inside `with`.

    Args:
        port: 0: a free one.
        beyond_loopback: allow a host that is no loopback address.

    Raises:
        BadInput: a bad study file, a host beyond loopback, or a place that cannot be served, such as a port in use.
    """

    def __init__(
        self, path: str | Path, host: str = "127.0.0.1", port: int = 8080, beyond_loopback: bool = False
    ) -> None:
        self.host, self.private = host, _is_loopback(host)
        if not (self.private or beyond_loopback):
            raise BadInput(
                f"host: must be a loopback address, got {host!r}, where others would see the study; leave --host out, "
                "or allow it with --beyond-loopback"
            )
        self.drawing = Drawing(path)
        try:
            self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            super().__init__(address, Handler)  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            cause = getattr(error, "strerror", None) or error
            raise BadInput(
                f"dashboard: port {port} of {host} cannot be served: {cause}; choose another --port (0: a free one) or "
                "--host"
            ) from None

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's would ask a name server who we are

    def __enter__(self) -> Dashboard:
        self.drawing.__enter__()
        return self

    def __exit__(self, *left: Any) -> None:
        self.server_close()
        self.drawing.__exit__(*left)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def answers(self, host: str | None) -> bool:
        """Whether a request may name this host: at loopback none but loopback, for any site can point its name there.

        Its port may be another: that of a tunnel.
        """
        try:
            return not self.private or _is_loopback(urlsplit(f"//{host or ''}").hostname or "")
        except ValueError:
            return False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a browser that hung up, as it does when it loads again
            super().handle_error(request, client_address)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Handler(BaseHTTPRequestHandler):
    """Two paths, to be read; nothing else is there."""

    server: Dashboard
    timeout = 30  # seconds for a client that connects and says nothing

    def do_GET(self) -> None:
        shown = self.server.drawing.shown
        if not self.server.answers(self.headers.get("Host")):
            self.send_error(403, "no such host here")
        elif self.command not in ("GET", "HEAD"):
            self.send_error(404)
        elif self.path == "/":
            self._send("text/html; charset=utf-8", shown.html)
        elif self.path == "/version":
            told = {"version": shown.version, "beside": shown.beside}
            self._send("application/json", json.dumps(told).encode())
        else:
            self.send_error(404)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def _send(self, kind: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page asks every second."""
