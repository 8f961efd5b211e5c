"""Measure the API beside its peers: `make bench` (see benchmarks/README.md).

    python benchmarks/bench.py compare [--rounds N] [--seconds S]    requests/s, p99, memory, start-up; results.svg
    python benchmarks/bench.py growth                                1,000 to 1,000,000 courses; growth.svg

In each round each server is started anew as its users start it, on copies of the same courses, in a random order, and
loaded by wrk over 16 connections. Machines are noisy, so what is quoted is the median of the rounds' ratios.
"""

import argparse
import datetime
import http.client
import importlib.metadata
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import jwt
import matplotlib
import psutil

matplotlib.use("svg")
from matplotlib import pyplot

HERE = pathlib.Path(__file__).parent
KEY = "a key for the benchmark, of more than 32 bytes"
# One process, as the others. One thread for Python: more only hand each other the interpreter's lock.
GRANIAN = ["granian", "--interface", "wsgi", "--workers", "1", "--blocking-threads", "1", "--log-level", "error"]
SERVERS = {  # what starts each; it finds PORT, DATABASE_URL and SECRET_KEY in its environment
    "floor": [sys.executable, HERE / "floor.py"],
    "course_api": [sys.executable, HERE.parent / "course_api.py"],
    "course_api, granian": [*GRANIAN, "--working-dir", HERE.parent, "course_api:app"],
    "Flask-SQLAlchemy": [sys.executable, HERE / "tutorial.py"],
    "FastAPI, SQLModel": [sys.executable, HERE / "fastapi_sqlmodel.py"],
    "Fastify": ["node", HERE / "fastify.mjs"],
}
WORKS = {  # the path, the script that makes wrk's requests where they differ from each other, and how many courses
    "one course": ("/", "get.lua", 1_000),
    "list of 1,000": ("/courses", None, 1_000),
    "POST": ("/courses", "post.lua", 1_000),
    "page of 50 of 100,000": ("/courses", "page.lua", 100_000),
}
CONNECTIONS = 16

SIZES = [1_000, 10_000, 100_000, 1_000_000]
READS = {  # what is timed on each of these
    "full list, ms": "/courses",
    "first page, ms": "/courses?limit=50",
    "deepest page, ms": "/courses?limit=50&offset={deepest}",
    "search, ms": "/courses?q=subject+777&limit=50",
}
PANELS = {  # what growth.svg shows
    "one course, requests/s": ["one course, requests/s"],
    "a list, ms": list(READS),
    "import, s": ["import, s"],
    "memory, MiB": ["answer, MiB", "most, MiB"],
}


def make_database(folder, courses):
    """Make a database of so many courses, with the project's own import; return its path, and the seconds that took."""
    path, file = pathlib.Path(folder, f"{courses}.db"), pathlib.Path(folder, f"{courses}.csv")
    lines = (f"C{n},Introduction to subject {n},Instructor {n % 1000}\n" for n in range(courses))
    file.write_text("code,name,instructor\n" + "".join(lines))
    command = [sys.executable, HERE.parent / "seed.py", "import", file]
    environment = os.environ | {"DATABASE_URL": f"sqlite:///{path}"}
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return path, time.monotonic() - started


def find_port():
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """One server, started on a copy of a database; `start_seconds` is the time to its first answer."""

    def __init__(self, name, database):
        self.folder = tempfile.TemporaryDirectory()
        shutil.copy(database, self.folder.name)
        self.courses, self.port = database.stem, find_port()
        now = int(time.time())
        token = jwt.encode({"sub": "bench", "iat": now, "exp": now + 86400}, KEY, algorithm="HS256")
        self.headers = {"Authorization": f"Bearer {token}"}
        environment = os.environ | {
            "PORT": str(self.port),
            "GRANIAN_PORT": str(self.port),  # its host is 127.0.0.1 by itself
            "DATABASE_URL": f"sqlite:///{self.folder.name}/{database.name}",
            "SECRET_KEY": KEY,
            "PYTHONWARNINGS": "ignore",
        }
        started = time.monotonic()
        self.process = subprocess.Popen(
            SERVERS[name], env=environment, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while True:
            try:
                self.get("/courses/C500")
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() - started > 30:
                    raise RuntimeError(f"{name} does not start") from None
                time.sleep(0.005)
        self.start_seconds = time.monotonic() - started

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def get(self, path):
        """Return the size of an answer in bytes, and how many seconds it took; raise RuntimeError for an error."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        started = time.monotonic()
        connection.request("GET", path, headers=self.headers)
        answer = connection.getresponse()
        size = 0
        while part := answer.read(1 << 20):
            size += len(part)
        seconds = time.monotonic() - started
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{path} is answered with {answer.status}")
        return size, seconds

    def processes(self):
        return [self.process, *psutil.Process(self.process.pid).children(recursive=True)]

    def memory(self, key="VmRSS"):
        """Return the resident memory of the server with its children, in MiB; VmHWM is the most it had."""
        status = "".join(pathlib.Path(f"/proc/{process.pid}/status").read_text() for process in self.processes())
        return sum(int(kilobytes) for kilobytes in re.findall(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)) / 1024

    def load(self, work, seconds, run=""):
        """Load the server with wrk; return requests per second and the 99th percentile of latency, in ms."""
        path, script, _ = WORKS[work]
        command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s", "--latency"]
        command += ["--header", f"Authorization: {self.headers['Authorization']}"]
        command += ["--script", HERE / script] if script else []
        command += [f"http://127.0.0.1:{self.port}{path}"]
        environment = os.environ | {"RUN": run, "COURSES": self.courses}
        output = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
        if "Non-2xx" in output or "Requests/sec" not in output:
            raise RuntimeError(f"{work}: {output}")
        p99, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", output).groups()
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
        return rate, float(p99) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def compare(rounds, seconds):
    """Measure every server in every round; print and draw the medians."""
    figures = {name: {} for name, command in SERVERS.items() if shutil.which(str(command[0]))}
    with tempfile.TemporaryDirectory() as folder:
        sizes = sorted({courses for _, _, courses in WORKS.values()})
        databases = {courses: make_database(folder, courses)[0] for courses in sizes}
        for number in range(rounds):
            for name in random.sample(list(figures), len(figures)):
                note(figures[name], measure(name, databases, seconds, f"r{number}"))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    print(describe())
    print_medians("server", figures)
    print_ratios(figures)
    draw(figures)


def measure(name, databases, seconds, run):
    """Start a server on each database in turn, and load it with the works for that one; return the figures."""
    row = {}
    for courses, database in databases.items():
        with Server(name, database) as server:
            row.setdefault("start, ms", server.start_seconds * 1000)
            row.setdefault("idle, MiB", server.memory())
            for work, (_, _, wanted) in WORKS.items():
                if wanted == courses and (work == "one course" or name != "floor"):
                    row[work], row[f"{work}, p99 ms"] = server.load(work, seconds, run)
            row["loaded, MiB"] = max(row.pop("loaded, MiB", 0), server.memory())
    return row


def note(figures, row):
    """Add a row of figures to those of the rounds before."""
    for figure, value in row.items():
        figures.setdefault(figure, []).append(value)


def ratio(figures, work, name, other):
    """Return the median over the rounds of one server's figure divided by another's."""
    pairs = zip(figures[name][work], figures[other][work], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def print_medians(head, figures):
    """Print the median of each figure, to three digits or more."""
    columns = max(figures.values(), key=len)  # the floor has fewer
    print(f"| {head} | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name, values in figures.items():
        medians = [statistics.median(values[column]) if column in values else None for column in columns]
        cells = ["" if value is None else f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}" for value in medians]
        print(f"| {name} | " + " | ".join(cells) + " |")


def print_ratios(figures):
    print("\n| ratio | " + " | ".join(WORKS) + " |")
    print("|---|" + "---:|" * len(WORKS))
    for name in ("course_api", "course_api, granian"):
        for other in figures:
            if name in figures and other not in ("course_api", "course_api, granian"):
                ratios = [f"{ratio(figures, w, name, other):.2f}" if w in figures[other] else "" for w in WORKS]
                print(f"| {name} / {other} | " + " | ".join(ratios) + " |")


def describe():
    """Return the machine, the versions and the date, in one line."""
    cpu = re.search(r"model name\s+: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]
    packages = ["bottle", "peewee", "PyJWT", "waitress", "granian", "Flask", "SQLAlchemy", "fastapi", "uvicorn"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{datetime.date.today()}, {cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}\n"


def draw(figures):
    """Draw requests per second, a panel for each work."""
    shown, axes = pyplot.subplots(2, 2, figsize=(9, 5), layout="constrained")
    for axis, work in zip(axes.flat, WORKS, strict=True):
        rates = {name: statistics.median(values[work]) for name, values in figures.items() if work in values}
        colours = ["#1b6ca8" if name.startswith("course_api") else "#b8c4ce" for name in rates]
        bars = axis.barh(list(rates), list(rates.values()), color=colours)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        axis.set_title(f"{work}, requests/s", fontsize=10)
        axis.margins(x=0.2)
        axis.invert_yaxis()
        axis.set_xticks([])
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    shown.supxlabel(f"{datetime.date.today()}, {os.cpu_count()} cores, {CONNECTIONS} connections, wrk", fontsize=8)
    shown.savefig(HERE / "results.svg", metadata={"Date": None})


def growth():
    """Measure the API on ever larger catalogues; print and draw the medians."""
    figures = {f"{size:,}": {} for size in SIZES}
    for number in range(5):  # interleaved, so that the sizes share the machine's good and bad times
        for size, values in zip(SIZES, figures.values(), strict=True):
            note(values, measure_size(size))
        print(f"round {number + 1} of 5", file=sys.stderr, flush=True)
    for size, values in figures.items():
        values["cost of one"] = [ratio(figures, "one course, requests/s", f"{SIZES[0]:,}", size)]
    print(describe())
    print_medians("courses", figures)
    shown, axes = pyplot.subplots(2, 2, figsize=(9, 5), layout="constrained")
    for axis, (title, columns) in zip(axes.flat, PANELS.items(), strict=True):
        for column in columns:
            medians = [statistics.median(values[column]) for values in figures.values()]
            axis.loglog(SIZES, medians, "o-", label=column.partition(",")[0])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("courses", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        if len(columns) > 1:
            axis.legend(fontsize=8)
    axes[0, 0].set(yscale="linear", ylim=(0, 1.2 * axes[0, 0].get_ylim()[1]))
    shown.savefig(HERE / "growth.svg", metadata={"Date": None})


def measure_size(courses):
    """Import so many courses, start the API on them, and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        database, import_seconds = make_database(folder, courses)
        with Server("course_api", database) as server:
            idle = server.memory()
            row = {"one course, requests/s": server.load("one course", 2)[0]}
            for figure, path in READS.items():
                answers = [server.get(path.format(deepest=courses - 50)) for _ in range(3)]
                row[figure] = statistics.median(seconds for _, seconds in answers) * 1000
            size, _ = server.get("/courses")
            most = server.memory("VmHWM")
    return row | {"import, s": import_seconds, "answer, MiB": size / 2**20, "idle, MiB": idle, "most, MiB": most}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "growth"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of load for each work")
    arguments = parser.parse_args()
    if arguments.what == "compare":
        compare(arguments.rounds, arguments.seconds)
    else:
        growth()


if __name__ == "__main__":
    main()
