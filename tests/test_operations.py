"""The commands of docs/operations.md that read the log."""

import re
import subprocess

import pytest
from servers import ROOT

pytestmark = pytest.mark.sqlite
COMMANDS = re.findall(r"(?m)^\$log \| (.*?) +# (.*)$", (ROOT / "docs/operations.md").read_text())
OTHER_LINES = """\
2026-11-25T03:30:19Z INFO 192.0.2.1 grace GET /courses 200 81920 bytes 1250.4 ms
2026-11-25T03:30:20Z ERROR the database is not available: server closed the connection unexpectedly
2026-11-25T03:30:20Z INFO 192.0.2.1 grace GET /courses/CSE115 503 66 bytes 0.4 ms
2026-11-25T03:30:21Z ERROR GET /courses/CSE115
Traceback (most recent call last):
2026-11-25T03:30:21Z INFO 192.0.2.1 grace GET /courses/CSE115 500 33 bytes 0.4 ms
"""


def test_the_commands_count_what_they_say(start, seeded, tmp_path):
    api = start()
    api.request("/courses", **api.bearer())
    api.request("/courses")
    for _ in range(6):
        status, _ = api.request("/login", "POST", {"username": "faisal", "password": "wrong"})
    assert status == 429
    api.stop()
    (tmp_path / "log").write_text("\n".join(api.output) + "\n" + OTHER_LINES)
    counts = {}
    for command, meaning in COMMANDS:
        done = subprocess.run(f"cat log | {command}", shell=True, cwd=tmp_path, capture_output=True, text=True)
        counts[meaning] = int(done.stdout)
    assert counts.pop("nobody reads the log") == 0
    assert counts == {
        "requests": 12,
        "failed: outages and bugs": 2,
        "failed and refused logins": 6,
        "slower than a second": 1,
        "errors": 2,
        "bugs": 1,
    }
