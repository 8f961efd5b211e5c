"""Measure the API beside its peers: `make bench` (see benchmarks/README.md).

    python benchmarks/bench.py compare [--rounds N] [--seconds S]    requests/s, p99, memory, start-up; results.svg
    python benchmarks/bench.py growth                                1,000 to 1,000,000 courses; growth.svg
    python benchmarks/bench.py servers [--rounds N] [--seconds S]    the API by workers, on SQLite and on PostgreSQL
    python benchmarks/bench.py capacity [--courses N ...]            what PostgreSQL takes for how many courses

The last two need a PostgreSQL server, and the last one pgbench; they make databases there and drop them.

In each round each server is started anew as its users start it, on copies of the same courses, in a random order, and
loaded by wrk over 16 connections. Machines are noisy, so what is quoted is the median of the rounds' ratios.
"""

import argparse
import contextlib
import datetime
import functools
import http.client
import importlib.metadata
import itertools
import os
import pathlib
import platform
import random
import re
import secrets
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
import psycopg2

matplotlib.use("svg")
from matplotlib import pyplot

HERE = pathlib.Path(__file__).parent
KEY = "a key for the benchmark, of more than 32 bytes"
WAITRESS = [sys.executable, HERE.parent / "course_api.py"]
# One thread for Python in each worker: more only hand each other the interpreter's lock.
GRANIAN = ["granian", "--interface", "wsgi", "--blocking-threads", "1", "--log-level", "error"]
GRANIAN += ["--working-dir", HERE.parent, "course_api:app", "--workers"]
GUNICORN = ["gunicorn", "--worker-class", "gthread", "--threads", "1", "--log-level", "error"]
GUNICORN += ["--chdir", HERE.parent, "course_api:app", "--workers"]
SERVERS = {  # what starts each; it finds PORT, DATABASE_URL and SECRET_KEY in its environment
    "floor": [sys.executable, HERE / "floor.py"],
    "course_api": WAITRESS,
    "course_api, granian": [*GRANIAN, "1"],
    "Flask-SQLAlchemy": [sys.executable, HERE / "tutorial.py"],
    "FastAPI, SQLModel": [sys.executable, HERE / "fastapi_sqlmodel.py"],
    "Fastify": ["node", HERE / "fastify.mjs"],
}
OURS = {  # the API alone, by its workers
    "waitress": WAITRESS,
    "granian, 1 worker": [*GRANIAN, "1"],
    "granian, 2 workers": [*GRANIAN, "2"],
    "granian, 4 workers": [*GRANIAN, "4"],
    "gunicorn, 2 workers": [*GUNICORN, "2"],
    "gunicorn, 4 workers": [*GUNICORN, "4"],
}
WORKS = {  # the path, the script that makes wrk's requests where they differ from each other, and how many courses
    "one course": ("/courses/C%d", "get.lua", 1_000),
    "list of 1,000": ("/courses", None, 1_000),
    "POST": ("/courses", "post.lua", 1_000),
    "page of 50 of 100,000": ("/courses?limit=50&offset=%d", "get.lua", 100_000),
}
CONNECTIONS = 16

SIZES = [1_000, 10_000, 100_000, 1_000_000]
READS = {  # what is timed on each of these
    "full list, ms": "/courses",
    "first page, ms": "/courses?limit=50",
    "deepest page, ms": "/courses?limit=50&offset={deepest}",
    "search, ms": "/courses?q=subject+777&limit=50",
}
# Made in the database itself, for ten million through the API take minutes; 20 courses for each instructor.
FILL = """INSERT INTO courses (code, name, instructor)
SELECT 'C' || n, 'Introduction to subject ' || n, 'Instructor ' || n / 20 FROM generate_series({first}, {last}) AS n"""
INDEXES = {  # of which it is measured what they bring and cost
    "by_name": "(name, id)",
    "by_instructor": "(instructor, id)",
    "for_search": "USING gin (code gin_trgm_ops, name gin_trgm_ops, instructor gin_trgm_ops)",
}
INDEX_OPTIONS = "-c%20maintenance_work_mem%3D1GB%20-c%20statement_timeout%3D300s"
REQUESTS = {  # what one costs: the path, the script, and headers; pages last, as PostgreSQL works on when wrk has ended
    "one course": ("/courses/C%d", "get.lua", {}),
    "one course, 304": ("/courses/C%d", "get.lua", {"If-None-Match": "*"}),
    "POST": ("/courses", "post.lua", {}),
    "page after another": ("/courses?limit=50&after=%d:", "get.lua", {}),
}
PANELS = {  # what growth.svg shows
    "one course, requests/s": ["one course, requests/s"],
    "a list, ms": list(READS),
    "import, s": ["import, s"],
    "memory, MiB": ["answer, MiB", "most, MiB"],
}


def ask(url, sql):
    """Return the rows that a PostgreSQL server answers, each statement by itself outside of a transaction."""
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def new_database(server, original=""):
    """Lend the URL of a new database, empty or a copy; `server` is a PostgreSQL server's URL, or "sqlite"."""
    if server == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            if original:
                shutil.copy(original.removeprefix("sqlite:///"), f"{folder}/courses.db")
            yield f"sqlite:///{folder}/courses.db"
        return
    name, template = f"bench_{secrets.token_hex(4)}", original.rpartition("/")[2] or "template1"
    ask(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield f"{server.rpartition('/')[0]}/{name}"
    finally:
        ask(server, f"DROP DATABASE {name} WITH (FORCE)")


def fill(url, courses):
    """Fill a database with so many courses, with the project's own import; return the seconds that took."""
    lines = (f"C{n},Introduction to subject {n},Instructor {n % 1000}\n" for n in range(courses))
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        file.writelines(["code,name,instructor\n", *lines])
        file.flush()
        command = [sys.executable, HERE.parent / "seed.py", "import", file.name]
        started = time.monotonic()
        subprocess.run(command, env=os.environ | {"DATABASE_URL": url}, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
    if url.startswith("postgres"):
        ask(url, "VACUUM ANALYZE")  # as its autovacuum does within a minute
    return seconds


def find_port():
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """One server, started on a database of so many courses; `start_seconds` is the time to its first answer."""

    def __init__(self, command, url, courses):
        self.courses, self.port = courses, find_port()
        now = int(time.time())
        token = jwt.encode({"sub": "bench", "iat": now, "exp": now + 86400}, KEY, algorithm="HS256")
        self.headers = {"Authorization": f"Bearer {token}"}
        environment = os.environ | {
            "PORT": str(self.port),
            "GRANIAN_PORT": str(self.port),  # its host is 127.0.0.1 by itself
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{self.port}",
            "DATABASE_URL": url,
            "SECRET_KEY": KEY,
            "PYTHONWARNINGS": "ignore",
        }
        started = time.monotonic()
        self.process = subprocess.Popen(
            command, env=environment, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while True:
            try:
                self.get("/courses/C500")
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() - started > 30:
                    raise RuntimeError(f"{command} does not start") from None
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

    def load(self, path, script, seconds, run=""):
        """Load the server with wrk; return requests per second, the 99th percentile of latency in ms, and bytes/s."""
        command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s", "--latency"]
        for header, value in self.headers.items():
            command += ["--header", f"{header}: {value}"]
        command += ["--script", HERE / script] if script else []
        command += [f"http://127.0.0.1:{self.port}{path}"]
        environment = os.environ | {"RUN": run, "COURSES": str(self.courses)}
        output = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
        if "Non-2xx" in output or "Requests/sec" not in output:
            raise RuntimeError(f"{path}: {output}")
        p99, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", output).groups()
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
        size, prefix = re.search(r"Transfer/sec:\s+([\d.]+)([BKMG])", output).groups()
        return rate, float(p99) * {"us": 0.001, "ms": 1, "s": 1000}[unit], float(size) * 1024 ** "BKMG".index(prefix)


def compare(rounds, seconds):
    """Measure every server in every round; print and draw the medians."""
    commands = {name: command for name, command in SERVERS.items() if shutil.which(str(command[0]))}
    figures = measure_all({name: (command, "sqlite") for name, command in commands.items()}, rounds, seconds)
    print(describe())
    print_medians("server", figures)
    ours = [name for name in figures if name.startswith("course_api")]
    print_ratios(figures, [(name, other) for name in ours for other in figures if other not in ours])
    draw(figures)


def servers(rounds, seconds, postgresql):
    """Measure the API's own servers on both databases; print the medians."""
    places = {"SQLite": "sqlite", "PostgreSQL": postgresql}
    rows = {f"{name}, {place}": (command, url) for place, url in places.items() for name, command in OURS.items()}
    figures = measure_all(rows, rounds, seconds)
    print(describe("gunicorn", "psycopg2-binary") + ask(postgresql, "SELECT version()")[0][0] + "\n")
    print_medians("server, database", figures)
    pairs = [(f"{name}, {place}", f"granian, 1 worker, {place}") for place in places for name in OURS]
    pairs += [(f"{name}, PostgreSQL", f"{name}, SQLite") for name in OURS]
    print_ratios(figures, [(name, other) for name, other in pairs if name != other])


def measure_all(rows, rounds, seconds):
    """Measure every row in every round; each is a name, the command, and where its database is. Return the figures."""
    figures = {name: {} for name in rows}
    with contextlib.ExitStack() as stack:
        originals = {place: {} for _, place in rows.values()}
        for place, urls in originals.items():
            for courses in sorted({courses for _, _, courses in WORKS.values()}):
                urls[courses] = stack.enter_context(new_database(place))
                fill(urls[courses], courses)
        for number in range(rounds):
            for name in random.sample(list(rows), len(rows)):
                command, place = rows[name]
                note(figures[name], measure(command, place, originals[place], seconds, f"r{number}"))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return figures


def measure(command, place, originals, seconds, run):
    """Start a server on a copy of each database in turn, and load it with the works for that; return the figures."""
    row = {}
    for courses, original in originals.items():
        with new_database(place, original) as url, Server(command, url, courses) as server:
            row.setdefault("start, ms", server.start_seconds * 1000)
            time.sleep(1)  # its other workers start after the first
            row.setdefault("idle, MiB", server.memory())
            for work, (path, script, wanted) in WORKS.items():
                if wanted == courses and (work == "one course" or command != SERVERS["floor"]):
                    row[work], row[f"{work}, p99 ms"], _ = server.load(path, script, seconds, run)
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


def print_ratios(figures, pairs):
    print("\n| ratio | " + " | ".join(WORKS) + " |")
    print("|---|" + "---:|" * len(WORKS))
    for name, other in pairs:
        ratios = [f"{ratio(figures, w, name, other):.2f}" if w in figures[other] else "" for w in WORKS]
        print(f"| {name} / {other} | " + " | ".join(ratios) + " |")


def describe(*more):
    """Return the machine, the versions and the date, in one line."""
    cpu = re.search(r"model name\s+: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]
    packages = ["bottle", "peewee", "PyJWT", "waitress", "granian", "Flask", "SQLAlchemy", "fastapi", "uvicorn", *more]
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
    with new_database("sqlite") as url:
        import_seconds = fill(url, courses)
        with Server(WAITRESS, url, courses) as server:
            idle = server.memory()
            row = {"one course, requests/s": server.load("/courses/C%d", "get.lua", 2)[0]}
            for figure, path in READS.items():
                answers = [server.get(path.format(deepest=courses - 50)) for _ in range(3)]
                row[figure] = statistics.median(seconds for _, seconds in answers) * 1000
            size, _ = server.get("/courses")
            most = server.memory("VmHWM")
    return row | {"import, s": import_seconds, "answer, MiB": size / 2**20, "idle, MiB": idle, "most, MiB": most}


def capacity(sizes, seconds, postgresql):
    """Measure on PostgreSQL what a plan for ever more courses is made of; print it."""
    times, space, statements, requests = {}, {}, {}, {}
    with contextlib.closing(psycopg2.connect(postgresql)) as connection:
        first_process = psutil.Process(connection.info.backend_pid).parent()
    with new_database(postgresql) as url:
        os.environ["DATABASE_URL"] = url
        sys.path.insert(0, str(HERE.parent))
        import models  # not the whole API, which lets no statement take long

        models.prepare()
        models.User.create_user("bench", "password")
        ask(url, "CREATE EXTENSION pg_trgm")
        for first, courses in itertools.pairwise([0, *sizes]):
            ask(url, FILL.format(first=first, last=courses - 1))
            ask(url, "VACUUM ANALYZE")
            as_it_is, indexed = f"{courses:,}", f"{courses:,}, indexed"
            note_column(times, as_it_is, measure_calls(models, courses, seconds))
            note_column(space, as_it_is, measure_space(models))
            note_column(statements, as_it_is, measure_alone(models, url, courses, seconds))
            for name, columns in INDEXES.items():
                started = time.monotonic()
                with contextlib.suppress(psycopg2.errors.QueryCanceled):  # left out where it takes too long
                    ask(f"{url}?options={INDEX_OPTIONS}", f"CREATE INDEX {name} ON courses {columns}")
                    note_column(space, indexed, {f"{name}, s to make": time.monotonic() - started})
            note_column(times, indexed, measure_calls(models, courses, seconds))
            note_column(space, indexed, measure_space(models))
            ask(url, "DROP INDEX IF EXISTS " + ", ".join(INDEXES))
            models.disconnect()
            for name in ("waitress", "granian, 1 worker"):
                with Server(OURS[name], url, courses) as server:
                    for request, (path, script, headers) in REQUESTS.items():
                        run = f"{name[0]}{courses}"
                        figures = measure_requests(server, first_process, path, script, headers, seconds, run)
                        requests[f"{name}, {courses:,}: {request}"] = figures
            print(f"{courses:,} courses are done", file=sys.stderr, flush=True)
    print(describe("psycopg2-binary") + ask(postgresql, "SELECT version()")[0][0] + "\n")
    for head, table in (
        ("one call, ms", times),
        ("PostgreSQL alone, statements/s", statements),
        ("space, MiB", space),
        ("requests", requests),
    ):
        print_medians(head, table)
        print()


def note_column(table, column, values):
    """Add a column of figures to a table, which is a dict of rows."""
    for row, value in values.items():
        note(table.setdefault(row, {}), {column: value})


def measure_calls(models, courses, seconds):
    """Return the median time of each call of models.py, on one connection, in ms."""
    course, page, new = models.Course, functools.partial(models.Course.get_page, limit=50), secrets.token_hex(4)
    dice, numbers = functools.partial(random.randrange, courses), itertools.count()
    token = jwt.encode({"sub": "bench", "iat": 0, "exp": 2**32}, KEY, algorithm="HS256")
    alone, _ = models.page_query("id", "", False, True, True)
    alone = re.sub(r"\(SELECT COUNT\(\*\) FROM .*?\)", "0", alone, count=1)
    some = "SELECT COUNT(*) FROM (SELECT 1 FROM courses WHERE code ILIKE %s OR name ILIKE %s OR instructor ILIKE %s"
    some += " LIMIT 10000) AS found"
    calls = {
        "one course": lambda: course.get_json(f"C{dice()}"),
        "count of all": lambda: course.select().count(),
        "first page": page,
        "page after another": lambda: page(after=f"{dice()}:"),
        "page after another, not counted": lambda: models.database.execute_sql(alone, (dice(), 51, 0)).fetchone(),
        "page at the largest offset": lambda: page(offset=courses - 50),
        "first page by name": lambda: page(sort="name"),
        "page by name after another": lambda: page(sort="name", after=f"{dice()}:Introduction to subject {dice()}"),
        "courses of one instructor": lambda: page(instructor=f"Instructor {dice() // 20}"),
        "search that finds few": lambda: page(q=f"subject {courses - 1}"),
        "search that finds 1 in 900": lambda: page(q="subject 777"),
        "search that finds all": lambda: page(q="subject"),
        "search that finds none": lambda: page(q="no such course"),
        "count of what is found, to 10,000": lambda: models.database.execute_sql(some, ["%subject%"] * 3).fetchone(),
        "PATCH": lambda: course.update_course(f"C{dice()}", instructor="Ada Lovelace"),
        "POST": lambda: course.add_course(f"{new}-{next(numbers)}", "Ada Lovelace", "Introduction"),
        "login": lambda: models.User.match_user("bench", "password"),
        "token that is new": lambda: jwt.decode(token, KEY, algorithms=["HS256"]),
    }
    medians = {}
    for name, call in calls.items():
        times, end = [], time.monotonic() + seconds
        while len(times) < 3 or time.monotonic() < end:
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        medians[name] = statistics.median(times) * 1000
    return medians


def measure_space(models):
    """Return the sizes of the database, of the table and each index of courses, and of this connection, in MiB."""
    sizes = """SELECT relname, pg_relation_size(pg_class.oid) FROM pg_class WHERE relname = 'courses'
    UNION ALL SELECT indexrelid::regclass::text, pg_relation_size(indexrelid) FROM pg_index
        WHERE indrelid = 'courses'::regclass
    UNION ALL SELECT 'database', pg_database_size(current_database())
    UNION ALL SELECT 'memory of a connection', sum(total_bytes)::bigint FROM pg_backend_memory_contexts"""
    return {name: size / 2**20 for name, size in models.database.execute_sql(sizes)}


def measure_alone(models, url, courses, seconds):
    """Return how often a second PostgreSQL gives pgbench one course, parsed each time, as for the API, or prepared."""
    rates, sql = {}, models.ONE_COURSE.replace("%s", "'C' || :number")
    for mode, (connections, threads) in itertools.product(("simple", "prepared"), ((1, 1), (4, 2), (16, 2), (64, 2))):
        command = ["pgbench", "--no-vacuum", "--protocol", mode, "--client", str(connections), "--jobs", str(threads)]
        command += ["--time", str(seconds), "--file", "/dev/stdin", url]
        script = f"\\set number random(0, {courses - 1})\n{sql}\n"
        output = subprocess.run(command, input=script, capture_output=True, text=True, check=True).stdout
        rates[f"connections: {connections}, {mode}"] = float(re.search(r"tps = ([\d.]+)", output)[1])
    return rates


def measure_requests(server, postgresql, path, script, headers, seconds, run):
    """Return requests/s, what one costs the API and PostgreSQL, which must have no other work, and its bytes.

    `postgresql` is the process that started all of PostgreSQL's others, which must be on this machine.
    """

    def used():
        """Return the seconds of CPU so far, with those of children that have ended, as PostgreSQL's helpers do."""
        ours = [psutil.Process(process.pid) for process in server.processes()]
        while True:
            theirs = [postgresql, *postgresql.children()]
            with contextlib.suppress(psutil.NoSuchProcess):  # one has ended meanwhile
                return [sum(sum(process.cpu_times()[:4]) for process in group) for group in (ours, theirs)]

    own, server.headers = server.headers, server.headers | headers
    before = used()
    try:
        rate, p99, transfer = server.load(path, script, seconds, run)
    except RuntimeError:
        rate = 0  # PostgreSQL took too long, and some were answered with 503
    finally:
        server.headers = own
    if not rate:
        return {}  # an empty row
    costs = [(after - then) * 1000 / (rate * seconds) for after, then in zip(used(), before, strict=True)]
    return {
        "requests/s": [rate],
        "p99 ms": [p99],
        "API, ms of CPU": [costs[0]],
        "PostgreSQL, ms of CPU": [costs[1]],
        "bytes": [transfer / rate],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "growth", "servers", "capacity"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of load for each work")
    parser.add_argument("--courses", type=int, nargs="+", default=[100_000, 1_000_000], help="in ascending order")
    parser.add_argument("--postgresql", default="postgresql://postgres@127.0.0.1/postgres", help="the server to use")
    given = parser.parse_args()
    if given.what == "compare":
        compare(given.rounds, given.seconds)
    elif given.what == "servers":
        servers(given.rounds, given.seconds, given.postgresql)
    elif given.what == "capacity":
        capacity(given.courses, given.seconds, given.postgresql)
    else:
        growth()


if __name__ == "__main__":
    main()
