"""Claims about the live page: what is served to whom, and that it follows a record that somebody else writes."""

import json
import math
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.client import HTTPConnection
from importlib import resources
from urllib.parse import urlsplit
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from browser import CHROMIUM, Browser
from waiting import until

from tuner.errors import BadInput
from tuner.opening import open_study
from tuner.report.live import Dashboard
from tuner.report.page import page
from tuner.studyfile import read

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
SPACE = ("[scale]", "[space]\nlr = { low = 1e-4, high = 1e-1, log = true }\n[scale]")


@contextmanager
def serving(server):
    """Requests are answered, by a thread of this process."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def live(path, **how):
    with Dashboard(path, port=0, **how) as dashboard, serving(dashboard):
        yield dashboard.url


def shown(url):
    with urlopen(url) as answer:
        return answer.read().decode()


def told(url):
    return json.loads(shown(f"{url}version"))


def trials(text):
    """The page's island of trials; none on the first, small page."""
    return json.loads(text.partition('id="trials">')[2].partition("</script>")[0] or "[]")


def drawn(url, *states):
    """The page, once it shows trials in these states."""
    return until(lambda: (text := shown(url)) and [t["state"] for t in trials(text)] == list(states) and text)


def diverged(path):
    """One more trial, of which nothing is learned: its page is drawn at once, those with an answer take seconds."""
    with open_study(read(path)) as study:
        study.tell(study.ask(), loss=math.inf)


# The record


WRITER = """
import sys
from tuner.opening import open_study
from tuner.studyfile import read
file = read(sys.argv[1])
sys.stdin.readline()
with open_study(file) as study:
    trial = study.ask()
    sys.stdin.readline()
    study.tell(trial, loss=1.25)
    sys.stdin.readline()
"""


def test_the_page_waits_for_a_record_and_follows_what_another_process_writes(bowl):
    path = bowl()
    before = sorted(p.name for p in path.parent.iterdir())
    command = [sys.executable, "-c", WRITER, path]
    with live(path) as url, subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1) as writer:
        empty = until(lambda: told(url)["version"])
        until(lambda: told(url)["beside"] == "No trial yet; tuner run study.toml makes the first.")
        assert "no run has finished yet" in shown(url)
        assert sorted(p.name for p in path.parent.iterdir()) == before  # looking makes nothing

        writer.stdin.write("\n")
        under_way = drawn(url, "running")
        until(lambda: not told(url)["beside"])
        version = told(url)["version"]
        assert version != empty
        with open_study(read(path), read_only=True) as study:
            assert under_way == page(study, version)
            static = page(study)

        writer.stdin.write("\n")
        done = drawn(url, "finished")
        assert told(url)["version"] not in (empty, version)
        writer.stdin.close()
    assert [t["loss"] for t in trials(done)] == [1.25]
    assert "<b>lr " in done  # the answer
    asks = (resources.files("tuner.report") / "live.js").read_text()
    assert asks in done
    assert asks not in static
    assert "connect-src 'self'" in done
    assert "connect-src" not in static


def test_the_same_record_has_the_same_version_whoever_serves_it(bowl):
    path = bowl()
    with live(path) as one, live(path) as other:
        assert until(lambda: told(one)["version"]) == until(lambda: told(other)["version"])


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda path: path.write_bytes(b"no database" * 999), "file is not a database"),
        (lambda path: path.symlink_to(path.parent), "disk I/O error"),
    ],
    ids=["spoilt", "a folder"],
)
def test_a_record_that_cannot_be_read_is_a_line_beside_the_last_page(bowl, make, cause):
    path = bowl()
    record, kept, bad = (path.parent / name for name in ("bowl.db", "kept", "bad"))
    diverged(path)
    kept.hardlink_to(record)
    make(bad)
    with live(path) as url:
        text = drawn(url, "diverged")
        until(lambda: not told(url)["beside"])
        bad.replace(record)
        beside = until(lambda: cause in (line := told(url)["beside"]) and line)
        assert beside.startswith("storage: ")
        assert "\n" not in beside
        assert shown(url) == text
        kept.replace(record)
        until(lambda: not told(url)["beside"])
        assert shown(url) == text


def test_a_study_file_that_turns_bad_is_a_line_too(bowl):
    path = bowl()
    with live(path) as url:
        until(lambda: told(url)["version"])
        path.write_text("[study]")
        assert "'study.name' is missing" in until(lambda: told(url)["beside"].partition("study.toml: ")[2])
        assert "no run has finished yet" in shown(url)


def test_a_study_that_cannot_be_opened_yet_is_a_line_on_the_small_page(bowl):
    path = bowl(("bowl:Bowl", "bwol:Bowl"))
    with live(path) as url:
        assert "'bwol' cannot be imported" in until(lambda: told(url)["beside"].partition("objective: ")[2])
        assert "Reading the study ..." in shown(url)
        path.write_text(path.read_text().replace("bwol:", "bowl:"))
        until(lambda: told(url)["version"])
        assert "no run has finished yet" in shown(url)


SLOW = """
class Slow(Bowl):
    def __init__(self):
        time.sleep(1)
        super().__init__()
"""


def test_after_a_page_comes_a_pause_in_which_changes_are_told_and_not_drawn(bowl):
    """A page takes a second at least, so the pause is three of them and a change in it is seen before it ends."""
    path = bowl(("bowl:Bowl", "bowl:Slow"))
    module = path.parent / "bowl.py"
    module.write_text(module.read_text() + SLOW)
    with open_study(read(path)) as study, live(path) as url:
        study.ask()
        first = drawn(url, "running")
        study.ask()
        until(lambda: told(url)["beside"].startswith("The record has changed; the page follows in "))
        assert shown(url) == first
        drawn(url, "running", "running")


TABLE = """
[study]
name = "table"
[runs]
path = "t.csv"
cost = "cost"
diverged = "loss > 8"
[space]
lr = { low = 1e-4, high = 1e-1, log = true }
[scale]
target = { width = 64 }
"""


def test_a_table_without_an_objective_is_served_too(tmp_path):
    rows = "lr,width,loss,cost\n" + "".join(f"{lr},{w},9,{w}\n" for lr in (0.001, 0.003, 0.01) for w in (8, 16))
    (tmp_path / "t.csv").write_text(rows)
    path = tmp_path / "table.toml"
    path.write_text(TABLE)
    with live(path) as url:
        drawn(url, *["diverged"] * 6)


# Who is answered


def asked(url, path="/", host=None, method="GET"):
    """Status and body, whatever the request names as its host."""
    connection = HTTPConnection(urlsplit(url).hostname, urlsplit(url).port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    if host:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers


@pytest.fixture
def idle(bowl):
    """Requests are answered, and nothing is ever drawn: no request draws."""
    with serving(Dashboard(bowl(), port=0)) as server:
        yield server.url
        server.server_close()


def test_before_there_is_a_page_a_small_one_asks_for_it(idle):
    text = shown(idle)
    assert "Reading the study ..." in text
    assert "<h1>bowl</h1>" in text
    assert len(text) < 10_000
    assert "fetch(" in text
    assert told(idle) == {"version": "", "beside": ""}


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LocalHost:9", "[::1]:{port}", "127.0.0.1"])
def test_a_request_that_names_loopback_is_answered_at_any_port_as_of_a_tunnel(idle, host):
    assert asked(idle, host=host.format(port=urlsplit(idle).port))[0] == 200


@pytest.mark.parametrize(
    "host", [None, "evil.example:{port}", "127.0.0.1.evil.example", "localhost@evil.example", "192.168.0.1", "[", "0"]
)
@pytest.mark.parametrize("path", ["/", "/version", "/other"])
def test_a_request_that_names_another_host_is_refused(idle, path, host):
    status, body, _ = asked(idle, path, host and host.format(port=urlsplit(idle).port))
    assert status == 403
    assert b"bowl" not in body


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", p) for p in ("/index.html", "/version/", "/../study.toml", "/?", "/bowl.db", "*")]
    + [(m, p) for m in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS") for p in ("/", "/version")],
)
def test_nothing_else_is_there(idle, method, path):
    assert asked(idle, path, "localhost", method)[0] == 404


@pytest.mark.parametrize("path", ["/", "/version"])
def test_head_is_get_without_the_body(idle, path):
    status, body, headers = asked(idle, path, "localhost")
    assert (status, int(headers["Content-Length"])) == (200, len(body))
    status, nothing, head = asked(idle, path, "localhost", "HEAD")
    assert (status, nothing) == (200, b"")
    assert {k: v for k, v in head.items() if k != "Date"} == {k: v for k, v in headers.items() if k != "Date"}


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::", "example.org", "127.1", ""])
def test_a_host_beyond_loopback_needs_a_word(bowl, host):
    with pytest.raises(BadInput, match=r"^host: must be a loopback address, got .*--beyond-loopback$"):
        Dashboard(bowl(), host, 0)


def test_with_that_word_any_name_of_the_host_is_answered(bowl):
    """127.1 is loopback to the system, and no address to us."""
    with serving(Dashboard(bowl(), "127.1", 0, beyond_loopback=True)) as server:
        assert asked(server.url, "/version", "node17.example")[0] == 200
        server.server_close()


def test_a_port_in_use_is_one_line(bowl):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        law = f"^dashboard: port {port} of 127.0.0.1 cannot be served: Address already in use; choose another --port"
        with pytest.raises(BadInput, match=law):
            Dashboard(bowl(), port=port)


# The command


def test_the_command_answers_and_ends_with_130_in_the_midst_of_a_page(bowl):
    path = bowl()
    with open_study(read(path)) as study:
        study.tell(study.ask(), loss=1.0)
    command = [sys.executable, "-m", "tuner.cli", "dashboard", path.name, "--port", "0"]
    with subprocess.Popen(command, cwd=path.parent, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        assert line.startswith("serving study.toml at http://127.0.0.1:"), line + process.stderr.read()
        url = line.split()[3].rstrip(",")
        until(lambda: told(url)["beside"] == "Drawing what is new ...")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--host", "0.0.0.0"], "host: must be a loopback address, got '0.0.0.0'"), (["--port", "70000"], "70000 is not")],
)
def test_what_cannot_be_served_is_one_line_and_status_2(bowl, more, said):
    from click.testing import CliRunner

    from tuner.cli import main

    done = CliRunner().invoke(main, ["dashboard", str(bowl()), *more])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


# In a browser


ROWS = 'document.querySelectorAll("#table tbody tr").length'
HEADING = 'document.querySelector("#table th")'
LINE = 'document.querySelector("[role=status]").textContent'


@in_browser
def test_a_browser_loads_the_page_again_when_the_record_has_changed_and_stays_where_it_was(bowl, tmp_path):
    path = bowl()
    diverged(path)
    with Browser(tmp_path / "profile") as browser:
        with live(path) as url:
            browser.open(url)  # the small page, or already the first
            until(lambda: browser.value(ROWS) == 1)
            assert browser.value('document.querySelectorAll(".js-plotly-plot").length') == 1
            browser.value(f"{HEADING}.click(); {HEADING}.click(); scrollTo(0, 200)")
            diverged(path)
            until(lambda: browser.value(ROWS) == 2)
            until(lambda: browser.value("scrollY") == 200)
            assert browser.value('document.querySelector("#table td").textContent') == "1"  # sorted, the last first
            until(lambda: browser.value(LINE) == "")
            assert browser.errors == []
        until(lambda: browser.value(LINE) == "The dashboard does not answer; this is what it showed last.")


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


@in_browser
def test_optuna_s_own_dashboard_shows_the_record(bowl, tmp_path):
    optuna_dashboard = pytest.importorskip("optuna_dashboard", reason="no optuna-dashboard")
    path = bowl()
    diverged(path)
    from optuna.storages import RDBStorage

    storage = RDBStorage(read(path).storage)
    application = optuna_dashboard.wsgi(storage)
    with serving(make_server("127.0.0.1", 0, application, handler_class=Quiet)) as server:
        with Browser(tmp_path / "profile") as browser:
            browser.open(f"http://127.0.0.1:{server.server_port}/dashboard")
            until(lambda: "bowl" in (browser.value("document.body?.innerText") or ""))
            assert browser.errors == []
        server.server_close()
    storage.remove_session()
    storage.engine.dispose()
