"""The log: lines on standard output, written by a thread of its own, so that nothing waits for whoever reads them."""

import collections
import functools
import logging
import os
import re
import sys
import threading
import time
from urllib.parse import quote

from settings import LOG_LEVEL

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
MAX_LINES = 10_000  # that wait to be written
MAX_PATH = 300  # characters of a path in the log
BATCH_SECONDS = 0.05  # between writes to the log; with one for each line, requests take a tenth longer (measured)
log = logging.getLogger("course_api")
is_plain = re.compile(r"[\w./:~*-]+", re.ASCII).fullmatch


class LogWriter(logging.Handler):
    """Writes lines to standard output in a thread of its own, so that nothing waits for whoever reads them.

    What comes while MAX_LINES wait is dropped and counted.
    """

    def __init__(self):
        super().__init__()
        self.lines, self.arrived, self.lost, self.count = collections.deque(), threading.Event(), 0, threading.Lock()

    def start(self):
        threading.Thread(target=self.run, daemon=True).start()

    def emit(self, record):
        self.add(self.format(record))

    def add(self, line):
        """Write a line soon."""
        if len(self.lines) < MAX_LINES:
            self.lines.append(line)
        else:
            with self.count:
                self.lost += 1
        if not self.arrived.is_set():
            self.arrived.set()

    def run(self):
        while self.arrived.wait():
            time.sleep(BATCH_SECONDS)
            self.write()
            self.arrived.clear()
            if self.lines:  # that came in between
                self.arrived.set()

    def write(self):
        """Write the lines that wait, and how many were lost before them."""
        lines = [self.lines.popleft() for _ in range(len(self.lines))]
        with self.count:
            lost, self.lost = self.lost, 0
        if lost:
            lines.append(f"{format_time(int(time.time()))} WARNING {lost:,} lines lost, since nobody read the log")
        data = "".join(f"{line}\n" for line in lines).encode(sys.stdout.encoding, "backslashreplace")
        try:
            while data:
                data = data[os.write(sys.stdout.fileno(), data) :]
        except OSError:  # a full disk or a closed pipe
            with self.count:
                self.lost += lost + len(lines) - bool(lost)

    def flush(self):
        """Wait until the lines are written, for up to a second."""
        deadline = time.monotonic() + 1
        while self.arrived.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)


log_writer = LogWriter()


@functools.lru_cache(maxsize=4)
def format_time(seconds):
    """Return a whole number of seconds of Unix time as the log shows it."""
    return time.strftime(TIME_FORMAT, time.gmtime(seconds))


def log_request(level, begin, address, user, method, path, status, size):
    """Write the line of a request that began at `begin`, in Unix time, and has just been answered with `size` bytes."""
    if log.isEnabledFor(level):
        milliseconds = (time.time() - begin) * 1000
        log_writer.add(
            f"{format_time(int(begin))} {logging.getLevelName(level)} {escape(address)} {escape(user)} {method} "
            f"{escape(path[:MAX_PATH], 'latin1')} {status} {size} bytes {milliseconds:.1f} ms"
        )


def escape(text, encoding="utf-8"):
    """Return a text as one field of the log."""
    return text if is_plain(text) else quote(text, "/:", encoding, "replace") or "-"


def set_up_log():
    """Write the log to standard output, in UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(handlers=[log_writer], level=LOG_LEVEL, format=LOG_FORMAT, datefmt=TIME_FORMAT)
    logging.getLogger("peewee").setLevel("WARNING")  # its DEBUG shows password hashes and the key
    logging.getLogger("waitress.queue").setLevel("ERROR")  # else a line for each request that waits
    log_writer.start()
