"""A headless Chromium, driven through its debugging pipe: what a page shows, does, and complains of."""

import json
import os
import shutil
import subprocess
import sys

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OFF = ("gpu", "quic", "background-networking", "component-update", "sync")  # what would ask other hosts
QUIET = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in OFF)]
# Chromium reads commands from descriptor 3 and answers on 4.
THROUGH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One tab; inside `with`. `errors` are exceptions of scripts and every request that failed or was refused."""

    def __init__(self, profile):
        self.errors, self._last = [], 0
        heard, self._to = os.pipe()
        self._from, said = os.pipe()
        chromium = [CHROMIUM, *QUIET, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        command = [sys.executable, "-c", THROUGH, str(heard), str(said), *chromium]
        self._process = subprocess.Popen(command, pass_fds=(heard, said), stderr=subprocess.DEVNULL)
        os.close(heard)
        os.close(said)
        self._answers, self._session = os.fdopen(self._from, "rb"), None

    def __enter__(self):
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self._ask(f"{domain}.enable")
        return self

    def __exit__(self, *left):
        self._session = None
        self._ask("Browser.close")
        self._process.wait()
        self._answers.close()
        os.close(self._to)

    def open(self, url):
        self._ask("Page.navigate", url=url)

    def value(self, expression):
        """What JavaScript says; None while a page is being loaded, as of what has none."""
        return self._ask("Runtime.evaluate", expression=expression, returnByValue=True).get("result", {}).get("value")

    def _ask(self, method, **params):
        self._last += 1
        session = {"sessionId": self._session} if self._session else {}
        told = {"id": self._last, "method": method, "params": params, **session}
        os.write(self._to, json.dumps(told).encode() + b"\0")
        while (answer := self._heard()).get("id") != self._last:
            self._note(answer)
        return answer.get("result", {})

    def _note(self, event):
        method, told = event.get("method"), event.get("params", {})
        entry = told.get("entry", told)  # of the browser's log, or of a script's console
        if method == "Runtime.exceptionThrown" or "error" in (entry.get("level"), entry.get("type")):
            self.errors.append(told)

    def _heard(self):
        read = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser is gone"
            read += byte
        return json.loads(read)
