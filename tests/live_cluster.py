"""`radar serve --replicas 2` in a process, with what it logs and starts."""

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
from live_server import wait_until
from prometheus_client.parser import text_string_to_metric_families

COMMAND = [
    sys.executable, "-m", "radar", "serve", "--replicas", "2", "--port", "0", "--device", "cpu", "--max-length", "512",
    "--max-batch-size", "3", "--total-tokens", "4", "--max-calls", "1", "--no-fallback", "--max-waiting", "8",
]  # fmt: skip


class Cluster:
    """A server in a process, and the lines that it has logged."""

    def __init__(self):
        self.process = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True)
        self.lines, self.other = [], []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        wait_until(lambda: self._logged("listening") or self.process.poll() is not None, 300)
        assert self._logged("listening"), self.other
        self.web = httpx.Client(base_url=self._logged("listening")[0]["url"], timeout=120)

    def _read(self):
        for line in self.process.stderr:
            if line.startswith("{"):
                self.lines.append(json.loads(line))
            else:
                self.other.append(line)

    def _logged(self, message):
        return [line for line in self.lines if line["message"] == message]

    def replica_of(self, name):
        """That answered the request of this id."""
        wait_until(lambda: any(line["request_id"] == name for line in self._logged("request")))
        return next(line["replica"] for line in self._logged("request") if line["request_id"] == name)

    def figures(self, name):
        """By replica."""
        found = Counter()
        for family in text_string_to_metric_families(self.web.get("/metrics").text):
            for one in family.samples:
                if one.name == name:
                    found[one.labels["replica"]] += one.value
        return found

    def end(self):
        """SIGTERM; what is left of it and of its children."""
        children = descendants(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(120) == 0
            wait_until(lambda: not [pid for pid in children if is_running(pid)], 120)
        finally:
            self.process.kill()
            self._reader.join(10)
        return children


def descendants(pid):
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
        except OSError:
            continue
    below = found.get(pid, [])
    return below + [one for child in below for one in descendants(child)]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
