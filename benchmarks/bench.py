"""Measure the API beside its peers: `make bench` (see benchmarks/README.md).

    python benchmarks/bench.py compare [--rounds N] [--seconds S]    requests/s, p99, memory, start-up; results.svg
    python benchmarks/bench.py growth                                1,000 to 1,000,000 courses; growth.svg

In each round each server is started anew as its users start it, on a copy of the same 1,000 courses, in a random order,
and loaded by wrk over 16 connections. Machines are noisy, so what is quoted is the median of the rounds' ratios.
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
WORKS = {  # the path, and the script that makes wrk's requests where they differ from each other
    "one course": ("/", "get.lua"),
    "list of 1,000": ("/courses", None),
    "POST": ("/courses", "post.lua"),
}
CONNECTIONS = 16


def make_database(folder, courses):
    """Make a database of so many courses, through the project's own models; return its path."""
    path = folder / f"{courses}.db"
    program = (
        "import models\n"
        "models.prepare()\n"
        f"numbers = range({courses})\n"
        "rows = [(f'C{n}', f'Introduction to subject {n}', f'Instructor {n % 1000}') for n in numbers]\n"
        "fields = [models.Course.code, models.Course.name, models.Course.instructor]\n"
        "with models.database.atomic():\n"
        "    for start in range(0, len(rows), 10_000):\n"
        "        models.Course.insert_many(rows[start : start + 10_000], fields).execute()\n"
    )
    environment = os.environ | {"DATABASE_URL": f"sqlite:///{path}", "PYTHONPATH": str(HERE.parent)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    return path


class Server:
    """One server, started on a copy of a database; `start_seconds` is the time to its first answer."""

    def __init__(self, name, database, port):
        self.folder = tempfile.TemporaryDirectory()
        shutil.copy(database, self.folder.name)
        self.port = port
        now = int(time.time())
        token = jwt.encode({"sub": "bench", "iat": now, "exp": now + 86400}, KEY, algorithm="HS256")
        self.headers = {"Authorization": f"Bearer {token}"}
        environment = os.environ | {
            "PORT": str(port),
            "GRANIAN_PORT": str(port),  # its host is 127.0.0.1 by itself
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
                status, _, _ = self.get("/courses/C500")
                if status == 200:
                    break
                raise RuntimeError(f"{name} answers {status}")
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
        """Return the status of an answer, its size in bytes, and how many seconds it took."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        started = time.monotonic()
        connection.request("GET", path, headers=self.headers)
        answer = connection.getresponse()
        size = 0
        while part := answer.read(1 << 20):
            size += len(part)
        seconds = time.monotonic() - started
        connection.close()
        return answer.status, size, seconds

    def processes(self):
        return [self.process, *psutil.Process(self.process.pid).children(recursive=True)]

    def memory(self, key="VmRSS"):
        """Return the resident memory of the server with its children, in bytes; VmHWM is the most it had."""
        status = "".join(pathlib.Path(f"/proc/{process.pid}/status").read_text() for process in self.processes())
        return sum(int(kilobytes) * 1024 for kilobytes in re.findall(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE))

    def load(self, work, seconds, courses=1000, run=""):
        """Load the server with wrk; return requests per second and the 99th percentile of latency, in ms."""
        path, script = WORKS[work]
        command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s", "--latency"]
        command += ["--header", f"Authorization: {self.headers['Authorization']}"]
        command += ["--script", HERE / script] if script else []
        command += [f"http://127.0.0.1:{self.port}{path}"]
        environment = os.environ | {"RUN": run, "COURSES": str(courses)}
        output = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
        if "Non-2xx" in output or "Requests/sec" not in output:
            raise RuntimeError(f"{work}: {output}")
        p99, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", output).groups()
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
        return rate, float(p99) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def compare(rounds, seconds):
    """Measure every server in every round; print and draw the medians."""
    names = [name for name, command in SERVERS.items() if shutil.which(str(command[0]))]
    figures = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        database = make_database(pathlib.Path(folder), 1000)
        for number in range(rounds):
            for name in random.sample(names, len(names)):
                with Server(name, database, 5600 + len(names) * number + names.index(name)) as server:
                    idle = server.memory() / 2**20
                    rows = {"start, ms": server.start_seconds * 1000, "idle, MiB": idle}
                    for work in ["one course"] if name == "floor" else WORKS:
                        rows[work], rows[f"{work}, p99 ms"] = server.load(work, seconds, run=f"r{number}")
                    rows["loaded, MiB"] = server.memory() / 2**20
                for figure, value in rows.items():
                    figures[name].setdefault(figure, []).append(value)
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    print(describe())
    print_table(names, figures)
    draw(names, figures)


def ratio(figures, work, name, other):
    """Return the median over the rounds of one server's figure divided by another's."""
    pairs = zip(figures[name][work], figures[other][work], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def print_table(names, figures):
    columns = list(figures["course_api"])
    print("| server | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name in names:
        medians = [statistics.median(figures[name][column]) if column in figures[name] else None for column in columns]
        cells = ["" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in medians]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| ratio | " + " | ".join(WORKS) + " |")
    print("|---|" + "---:|" * len(WORKS))
    for name in ("course_api", "course_api, granian"):
        for other in names:
            if name in names and other not in ("course_api", "course_api, granian"):
                ratios = [f"{ratio(figures, w, name, other):.2f}" if w in figures[other] else "" for w in WORKS]
                print(f"| {name} / {other} | " + " | ".join(ratios) + " |")


def describe():
    """Return the machine, the versions and the date, in one line."""
    cpu = re.search(r"model name\s+: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]
    packages = ["bottle", "peewee", "PyJWT", "waitress", "granian", "Flask", "SQLAlchemy", "fastapi", "uvicorn"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{datetime.date.today()}, {cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}\n"


def draw(names, figures):
    """Draw requests per second, a panel for each work."""
    shown, axes = pyplot.subplots(1, len(WORKS), figsize=(11, 2.8), layout="constrained")
    for axis, work in zip(axes, WORKS, strict=True):
        rates = {name: statistics.median(figures[name][work]) for name in names if work in figures[name]}
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
    """Measure one course, the full list, and memory on ever larger catalogues; print and draw them."""
    sizes, rows = [1_000, 10_000, 100_000, 1_000_000], []
    with tempfile.TemporaryDirectory() as folder:
        databases = {size: make_database(pathlib.Path(folder), size) for size in sizes}
        ones = {size: [] for size in sizes}
        for number in range(5):  # interleaved, so that the sizes share the machine's good and bad times
            for size in sizes:
                with Server("course_api", databases[size], 5700 + number * len(sizes) + sizes.index(size)) as server:
                    ones[size].append(server.load("one course", 2, size)[0])
        for index, size in enumerate(sizes):
            with Server("course_api", databases[size], 5800 + index) as server:
                idle = server.memory()
                answers = [server.get("/courses") for _ in range(3)]
                most = server.memory("VmHWM")
            answer = answers[0][1]
            seconds = statistics.median(seconds for _, _, seconds in answers)
            rates = ones[size]
            slower = statistics.median(first / rate for first, rate in zip(ones[sizes[0]], rates, strict=True))
            rows.append((size, statistics.median(rates), slower, seconds, answer, idle, most))
    print(describe())
    print("| courses | one course, requests/s | cost of one | full list, ms | answer, MiB | idle, MiB | most, MiB |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for size, rate, slower, seconds, answer, idle, most in rows:
        mib = [f"{value / 2**20:.1f}" for value in (answer, idle, most)]
        print(f"| {size:,} | {rate:,.0f} | {slower:.2f} | {seconds * 1000:,.1f} | " + " | ".join(mib) + " |")
    shown, axes = pyplot.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
    axes[0].plot(sizes, [row[1] for row in rows], "o-")
    axes[0].set(title="one course, requests/s", ylim=(0, 1.2 * max(row[1] for row in rows)))
    axes[1].loglog(sizes, [row[3] * 1000 for row in rows], "o-")
    axes[1].set(title="full list, ms")
    axes[2].loglog(sizes, [row[4] / 2**20 for row in rows], "o-", label="the answer")
    axes[2].loglog(sizes, [row[6] / 2**20 for row in rows], "o-", label="most resident memory")
    axes[2].set(title="memory of the full list, MiB")
    axes[2].legend(fontsize=8)
    for axis in axes:
        axis.set(xscale="log", xlabel="courses")
        axis.spines[["top", "right"]].set_visible(False)
    shown.savefig(HERE / "growth.svg", metadata={"Date": None})


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
