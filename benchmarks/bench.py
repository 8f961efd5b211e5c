"""Measure the API, and print the tables of benchmarks/README.md in Markdown.

    python benchmarks/bench.py compare     the API and its peers; draws results.svg
    python benchmarks/bench.py features    what the role look-up, the log and other parts of a request cost
    python benchmarks/bench.py growth      1,000 to 1,000,000 courses; draws growth.svg
    python benchmarks/bench.py walk        a whole catalogue, page by page, on SQLite and PostgreSQL
    python benchmarks/bench.py servers     the API by server and workers, on SQLite and PostgreSQL
    python benchmarks/bench.py capacity    what the plan for 10 million courses is based on; needs PostgreSQL

Name several to run them in that order. PostgreSQL is used if --postgresql or POSTGRES_URL has its address; the user
must be allowed to create databases. Each figure is the median of all rounds. The machine's speed can change between
rounds, so a ratio is the median of the ratios within each round.
"""

import argparse
import contextlib
import datetime
import http.client
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import re
import secrets
import shutil
import socket
import sqlite3
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
SEED = [sys.executable, HERE.parent / "seed.py"]
KEY = "a key for the benchmark, of more than 32 bytes"
CONNECTIONS = 16
WAITRESS = [sys.executable, HERE.parent / "course_api.py"]
# One Python thread in each worker: more would only wait for the interpreter's lock.
GRANIAN = ["granian", "--interface", "wsgi", "--blocking-threads", "1", "--log-level", "error"]
GRANIAN += ["--working-dir", HERE.parent, "course_api:app", "--workers"]
GUNICORN = ["gunicorn", "--worker-class", "gthread", "--threads", "1", "--log-level", "error"]
GUNICORN += ["--chdir", HERE.parent, "course_api:app", "--workers"]
POCKETBASE = f"pocketbase --automigrate=false --migrationsDir {HERE / 'pocketbase'}"
PEERS = {  # the command of each server; PORT, DATABASE_URL and SECRET_KEY are in its environment
    "floor": [sys.executable, HERE / "floor.py"],
    "course_api": WAITRESS,
    "course_api, NORMAL": [sys.executable, HERE / "without.py", "full durability"],
    "course_api, granian": [*GRANIAN, "1"],
    "Flask-SQLAlchemy": [sys.executable, HERE / "tutorial.py"],
    "FastAPI, SQLModel": [sys.executable, HERE / "fastapi_sqlmodel.py"],
    "Fastify": ["node", HERE / "fastify.mjs"],
    "PocketBase": ["sh", "-c", f"exec {POCKETBASE} serve --http 127.0.0.1:$PORT --dir ${{DATABASE_URL#sqlite:///}}.pb"],
}
WORKERS = {  # the same for the API alone
    "waitress": WAITRESS,
    "granian, 1 worker": [*GRANIAN, "1"],
    "granian, 2 workers": [*GRANIAN, "2"],
    "gunicorn, 2 workers": [*GUNICORN, "2"],
}
REQUESTS = {  # the path, the script that varies it, and the number of courses
    "one course": ("/courses/C%d", "get.lua", 1_000),
    "list of 1,000": ("/courses", None, 1_000),
    "page of 50 of 100,000": ("/courses?limit=50&offset=%d", "get.lua", 100_000),
    "POST": ("/courses", "post.lua", 1_000),
}
RECORDS = "/api/collections/courses/records"
POCKETBASE_PATHS = {  # of the same requests; a page has a number in place of an offset
    "one course": f"{RECORDS}/c%014d",
    "list of 1,000": f"{RECORDS}?perPage=1000",
    "page of 50 of 100,000": f"{RECORDS}?perPage=50&page=%d",
    "POST": RECORDS,
}
# How to serve the API without a part: the command, settings, and an ending of DATABASE_URL.
NO_LOOKUP = ([sys.executable, HERE / "without.py", "role look-up"], {}, "")
NO_GROUP_COMMIT = ([sys.executable, HERE / "without.py", "group commit"], {}, "")
NO_QUICK_READS = ([sys.executable, HERE / "without.py", "quick reads"], {}, "")
NO_LOG = (WAITRESS, {"LOG_LEVEL": "WARNING"}, "")
NO_SET_LOCAL = (WAITRESS, {}, "?options=-cstatement_timeout%3D1500")  # on connecting, so not in each statement
FEATURES = [  # the part, the database and the request
    ("role look-up", "SQLite", "POST", NO_LOOKUP),
    ("role look-up", "PostgreSQL", "POST", NO_LOOKUP),
    ("log line", "SQLite", "POST", NO_LOG),
    ("log line", "SQLite", "one course", NO_LOG),
    ("SET LOCAL", "PostgreSQL", "POST", NO_SET_LOCAL),
    ("SET LOCAL", "PostgreSQL", "one course", NO_SET_LOCAL),
    ("answer on the reading thread", "SQLite", "one course", NO_QUICK_READS),
    ("group commit", "SQLite", "POST", NO_GROUP_COMMIT),
]
SIZES = [1_000, 10_000, 100_000, 1_000_000]
GROWTH = {
    "full list, ms": "/courses",
    "first page, ms": "/courses?limit=50",
    "page at the largest offset, ms": "/courses?limit=50&offset={last_page}",
    "search, ms": "/courses?q=subject+777&limit=50",
}
PANELS = {  # of growth.svg
    "one course, requests/s": ["one course, requests/s"],
    "a list, ms": list(GROWTH),
    "import, s": ["import, s"],
    "memory, MiB": ["full list, MiB", "highest memory, MiB"],
}
MIN_PAGES = 4_000  # a short walk is repeated
TIMES = {  # of which the time is measured
    "one course": "/courses/C{middle}",
    "first page": "/courses?limit=50",
    "page by next": "/courses?limit=50&after=id:{middle}:{middle}",
    "page at the largest offset": "/courses?limit=50&offset={last_page}",
    "first page by name": "/courses?limit=50&sort=name",
    "page by name, by next": "/courses?limit=50&sort=name&after=name:1:Introduction+to+subject+5",
    "courses of one instructor": "/courses?limit=50&instructor=Instructor+7",
    "search that finds 1 in 900": "/courses?limit=50&q=subject+777",
    "search that finds nothing": "/courses?limit=50&q=no+such+course",
}
COSTS = {  # of which the CPU time is measured; PostgreSQL works on first pages after wrk has ended, so they are last
    "one course": ("/courses/C%d", "get.lua"),
    "page by next": ("/courses?limit=50&after=id:%d:0", "get.lua"),
    "POST": ("/courses", "post.lua"),
    "first page": ("/courses?limit=50", None),
}
PLAN = {"one course": 45_000, "page by next": 3_900, "POST": 500, "first page": 100}  # requests/s
INDEXES = """CREATE INDEX by_name ON courses (name, id);
CREATE INDEX by_instructor ON courses (instructor, id);
CREATE EXTENSION pg_trgm;
CREATE INDEX for_search ON courses USING gin (code gin_trgm_ops, name gin_trgm_ops, instructor gin_trgm_ops)"""
FILL = """WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {courses})
INSERT INTO courses (code, name, instructor)
SELECT 'C' || n, 'Introduction to subject ' || n, 'Instructor ' || n / 20 FROM numbers"""

# -- Databases ---------------------------------------------------------------------------------------------------------


def execute(url, sql):
    """Run a statement outside of a transaction; return its rows."""
    if url.startswith("sqlite"):
        opened = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    else:
        opened = psycopg2.connect(url)
        opened.autocommit = True
    with contextlib.closing(opened) as connection:
        cursor = connection.cursor()
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def new_database(server, original=""):
    """Lend the URL of a new database, empty or a copy of another; `server` is PostgreSQL's URL, or "sqlite"."""
    if server == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            if original:
                shutil.copy(original.removeprefix("sqlite:///"), f"{folder}/courses.db")
            yield f"sqlite:///{folder}/courses.db"
        return
    name, template = f"bench_{secrets.token_hex(4)}", original.rpartition("/")[2] or "template0"
    execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield f"{server.rpartition('/')[0]}/{name}"
    finally:
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def run_seed(url, *arguments):
    command = [*SEED, *arguments]
    output = {"stdout": subprocess.DEVNULL, "input": b"password of bench\n"}
    subprocess.run(command, env=os.environ | {"DATABASE_URL": url}, check=True, **output)


@contextlib.contextmanager
def filled_database(server, courses):
    """Lend the URL of a new database with this number of courses and the user bench."""
    with new_database(server) as url:
        run_seed(url, "user", "bench")
        execute(url, FILL.format(courses=courses))
        if server != "sqlite":
            execute(url, "VACUUM ANALYZE")  # as autovacuum does within a minute
        yield url


def find_databases(postgresql):
    """Return what new_database() takes for each database that can be used."""
    return {"SQLite": "sqlite"} | ({"PostgreSQL": postgresql} if postgresql else {})


def fill_pocketbase(url):
    """Make PocketBase's own database, next to ours, with the same courses."""
    file = url.removeprefix("sqlite:///")
    subprocess.run([*POCKETBASE.split(), "migrate", "up", "--dir", f"{file}.pb"], check=True, stdout=subprocess.DEVNULL)
    with contextlib.closing(sqlite3.connect(f"{file}.pb/data.db")) as connection, connection:
        connection.execute("ATTACH ? AS ours", (file,))
        connection.execute(
            """INSERT INTO main.courses (id, code, name, instructor)
            SELECT printf('c%014d', substr(code, 2)), code, name, instructor FROM ours.courses"""
        )


# -- Servers -----------------------------------------------------------------------------------------------------------


def find_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def family(pid):
    """Return a process and those that it has started."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def cpu_seconds(pid):
    """Return the CPU time of a process and those that it has started, also of those that have ended."""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):  # one has just ended
            return sum(sum(process.cpu_times()[:4]) for process in family(pid))


class Server:
    """A running server on a database with this many courses; `start_seconds` is the time until its first answer."""

    def __init__(self, command, url, courses, settings=None):
        self.courses, self.port = courses, find_port()
        now = int(time.time())
        token = jwt.encode({"sub": "bench", "iat": now, "exp": now + 86400}, KEY, algorithm="HS256")
        self.headers = {"Authorization": f"Bearer {token}"}
        environment = os.environ | {
            "PORT": str(self.port),
            "GRANIAN_PORT": str(self.port),
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{self.port}",
            "DATABASE_URL": url,
            "SECRET_KEY": KEY,
            "PYTHONWARNINGS": "ignore",
        }
        is_pocketbase = command == PEERS["PocketBase"]
        if is_pocketbase:
            fill_pocketbase(url)
        started = time.monotonic()
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment | (settings or {}), cwd=HERE, **output)
        while True:
            try:
                self.get("/api/health" if is_pocketbase else "/courses/C500")
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() - started > 30:
                    raise RuntimeError(f"{command} does not start") from None
                time.sleep(0.005)
        self.start_seconds = time.monotonic() - started
        if is_pocketbase:
            self.log_in_to_pocketbase()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_in_to_pocketbase(self):
        """Send a token of PocketBase's own."""
        login = json.dumps({"identity": "bench@example.com", "password": "password of bench"})
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            path, headers = "/api/collections/users/auth-with-password", {"Content-Type": "application/json"}
            connection.request("POST", path, login, headers)
            self.headers = {"Authorization": f"Bearer {json.load(connection.getresponse())['token']}"}

    def fetch(self, connection, path):
        """Return a response's body and its Link header; raise RuntimeError unless it is 200."""
        connection.request("GET", path, headers=self.headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} is answered with {response.status}")
        return body, response.getheader("Link", "")

    def get(self, path):
        """Return a response's size in bytes and the seconds it took, on a connection of its own."""
        started = time.monotonic()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            body, _ = self.fetch(connection, path)
        return len(body), time.monotonic() - started

    def median_ms(self, path, times):
        return statistics.median(self.get(path)[1] for _ in range(times)) * 1000

    def memory(self, key="VmRSS"):
        """Return the resident memory of its processes, in MiB; the highest so far with the key VmHWM."""
        processes = family(self.process.pid)
        status = "".join(pathlib.Path(f"/proc/{process.pid}/status").read_text() for process in processes)
        return sum(int(kilobytes) for kilobytes in re.findall(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)) / 1024

    def load(self, path, script, seconds):
        """Load the server with wrk; return requests/s."""
        command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s"]
        command += ["--header", f"Authorization: {self.headers['Authorization']}"]
        command += ["--script", HERE / script] if script else []
        command += [f"http://127.0.0.1:{self.port}{path}"]
        numbers = self.courses // 50 if "page=%d" in path else self.courses
        environment = os.environ | {"RUN": secrets.token_hex(4), "COURSES": str(numbers)}
        output = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
        if "Non-2xx" in output or "Requests/sec" not in output:
            raise RuntimeError(f"{path}: {output}")
        return float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])


# -- Tables: a dict of rows, each a dict of columns, each a list of the rounds' figures --------------------------------


def add_figures(row, figures):
    for column, figure in figures.items():
        row.setdefault(column, []).append(figure)


def format_figure(figures):
    """Return the median with three digits or more."""
    median = statistics.median(figures)
    return f"{median:,.0f}" if median >= 99.95 else f"{median:#.3g}"


def print_table(head, rows, columns=None):
    """Print a table in Markdown, with all columns of the first row unless some are named."""
    columns = columns or list(next(iter(rows.values())))
    print(f"\n| {head} | {' | '.join(columns)} |")
    print("|---|" + "---:|" * len(columns))
    for name, row in rows.items():
        cells = [format_figure(row[column]) if column in row else "" for column in columns]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def divide(figures, others):
    """Return the ratio of two figures in each round."""
    return [figure / other for figure, other in zip(figures, others, strict=True)]


def describe():
    """Return the date, the machine and the versions."""
    cpu = re.search(r"model name\s+: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]
    packages = ["bottle", "peewee", "waitress", "granian", "gunicorn", "Flask", "SQLAlchemy", "fastapi", "uvicorn"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{datetime.date.today()}, {cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def report_progress(part, number, rounds):
    print(f"{part}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)


def draw_panels(name, draw, titles):
    """Draw four panels, each with `draw`, which takes the axis and the title, and write them to an SVG file."""
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 5), layout="constrained")
    for axis, title in zip(axes.flat, titles, strict=True):
        draw(axis, title)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"{datetime.date.today()}, {os.cpu_count()} cores", fontsize=8)
    figure.savefig(HERE / name, metadata={"Date": None})


# -- compare and servers -----------------------------------------------------------------------------------------------


def measure_servers(part, rows, rounds, seconds):
    """Return a table of servers; `rows` has the command and the database of each."""
    table = {name: {} for name in rows}
    with contextlib.ExitStack() as stack:
        originals = {server: {} for _, server in rows.values()}
        for server, urls in originals.items():
            for courses in (1_000, 100_000):
                urls[courses] = stack.enter_context(filled_database(server, courses))
        for number in range(rounds):
            for name in random.sample(list(rows), len(rows)):
                command, server = rows[name]
                add_figures(table[name], measure_server(command, server, originals[server], seconds))
            report_progress(part, number, rounds)
    return table


def measure_server(command, server, originals, seconds):
    """Start a server on a copy of each database in turn, and load it; return the figures."""
    row = {}
    for courses, original in originals.items():
        with new_database(server, original) as url, Server(command, url, courses) as running:
            row.setdefault("start, ms", running.start_seconds * 1000)
            time.sleep(1)  # until all workers run
            row.setdefault("idle, MiB", running.memory())
            for request, (path, script, wanted) in REQUESTS.items():
                if wanted == courses and (request == "one course" or command != PEERS["floor"]):
                    path = POCKETBASE_PATHS[request] if command == PEERS["PocketBase"] else path
                    row[request] = running.load(path, script, seconds)
            row["loaded, MiB"] = max(row.get("loaded, MiB", 0), running.memory())
    return row


def compare(rounds, seconds, _postgresql):
    """Compare the API with its peers."""
    peers = dict(PEERS)
    if not (shutil.which("node") and (HERE / "node_modules").exists()):
        del peers["Fastify"]
    if not shutil.which("pocketbase"):
        del peers["PocketBase"]
    table = measure_servers("compare", {name: (command, "sqlite") for name, command in peers.items()}, rounds, seconds)
    print_table("requests per second", table, [*REQUESTS, "start, ms", "idle, MiB", "loaded, MiB"])
    ours = [name for name in table if name.startswith("course_api")]
    ratios = {}
    for name, other in [(name, other) for name in ours for other in table if other not in ours]:
        shared = [request for request in REQUESTS if request in table[other]]
        ratios[f"{name} / {other}"] = {
            request: divide(table[name][request], table[other][request]) for request in shared
        }
    print_table("ratio", ratios, list(REQUESTS))

    def draw(axis, request):
        rates = {name: statistics.median(row[request]) for name, row in table.items() if request in row}
        colours = ["#1b6ca8" if name in ours else "#b8c4ce" for name in rates]
        bars = axis.barh(list(rates), list(rates.values()), color=colours)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        axis.set_title(f"{request}, requests/s", fontsize=10)
        axis.margins(x=0.2)
        axis.invert_yaxis()
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)

    draw_panels("results.svg", draw, REQUESTS)


def servers(rounds, seconds, postgresql):
    """Compare the servers that can serve the API."""
    rows = {
        f"{name}, {database}": (command, server)
        for database, server in find_databases(postgresql).items()
        for name, command in WORKERS.items()
    }
    table = measure_servers("servers", rows, rounds, seconds)
    print_table("server, database", table, [*REQUESTS, "idle, MiB", "loaded, MiB"])


# -- features ----------------------------------------------------------------------------------------------------------


def features(rounds, seconds, postgresql):
    """Measure the API with each part and without it, one right after the other."""
    databases = find_databases(postgresql)
    chosen = [feature for feature in FEATURES if feature[1] in databases]
    table = {f"{name}, {database}, {request}": {} for name, database, request, _ in chosen}
    with contextlib.ExitStack() as stack:

        def start(database, command, settings, ending):
            url = stack.enter_context(filled_database(databases[database], 1_000))
            return stack.enter_context(Server(command, url + ending, 1_000, settings))

        whole = {database: start(database, WAITRESS, {}, "") for database in databases}
        without = [start(database, *variant) for _, database, _, variant in chosen]
        for number in range(rounds):
            for row, (_, database, request, _), other in zip(table.values(), chosen, without, strict=True):
                path, script, _ = REQUESTS[request]
                pair = {"with": whole[database], "without": other}
                rates = {name: pair[name].load(path, script, seconds) for name in random.sample(list(pair), 2)}
                add_figures(row, {"with": rates["with"], "without": rates["without"]})
            report_progress("features", number, rounds)
    for row in table.values():
        ratios = divide(row["with"], row["without"])
        row |= {"ratio": ratios, "lowest": [min(ratios)], "highest": [max(ratios)]}
    print_table("part, database, request", table)


# -- growth and walk ---------------------------------------------------------------------------------------------------


def growth(rounds, seconds, _postgresql):
    """Measure the API on larger and larger catalogues."""
    table = {f"{size:,}": {} for size in SIZES}
    for number in range(rounds):
        for size, row in zip(SIZES, table.values(), strict=True):
            add_figures(row, measure_size(size, seconds))
        report_progress("growth", number, rounds)
    rates = [row["one course, requests/s"] for row in table.values()]
    for row, figures in zip(table.values(), rates, strict=True):
        row["relative cost of one course"] = divide(rates[0], figures)
    print_table("courses", table)

    def draw(axis, title):
        for column in PANELS[title]:
            axis.loglog(SIZES, [statistics.median(row[column]) for row in table.values()], "o-", label=column)
        if title == "one course, requests/s":
            axis.set(yscale="linear", ylim=(0, 1.2 * axis.get_ylim()[1]))
        if len(PANELS[title]) > 1:
            axis.legend(fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("courses", fontsize=8)

    draw_panels("growth.svg", draw, PANELS)


def measure_size(courses, seconds):
    """Import courses with seed.py, and serve them; return the figures."""
    lines = (f"C{n},Introduction to subject {n},Instructor {n // 20}\n" for n in range(courses))
    with new_database("sqlite") as url, tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        run_seed(url, "user", "bench")
        file.writelines(["code,name,instructor\n", *lines])
        file.flush()
        started = time.monotonic()
        run_seed(url, "import", file.name)
        import_seconds = time.monotonic() - started
        with Server(WAITRESS, url, courses) as server:
            row = {"one course, requests/s": server.load("/courses/C%d", "get.lua", seconds)}
            row |= {name: server.median_ms(path.format(last_page=courses - 50), 3) for name, path in GROWTH.items()}
            row |= {"import, s": import_seconds, "full list, MiB": server.get("/courses")[0] / 2**20}
            return row | {"highest memory, MiB": server.memory("VmHWM")}


def walk(rounds, _seconds, postgresql):
    """Follow `next` from the first page to the last; measure whether pages get slower on the way."""
    table = {}
    with contextlib.ExitStack() as stack:
        walks = []
        for database, server in find_databases(postgresql).items():
            for courses in SIZES:
                url = stack.enter_context(filled_database(server, courses))
                running = stack.enter_context(Server(WAITRESS, url, courses))
                row = table.setdefault(f"{database}, {courses:,}", {})
                walks.append((running, row))
        for number in range(rounds):
            for running, row in walks:
                add_figures(row, measure_walk(running))
            report_progress("walk", number, rounds)
    for row in table.values():
        row["last tenth / first tenth"] = divide(row["last tenth, ms"], row["first tenth, ms"])
    print_table("database, courses", table)


def measure_walk(server):
    """Walk the catalogue until there are enough pages; return the figures of a page without the first, which counts."""
    first, pages, last = [], [], []
    while len(pages) < MIN_PAGES:
        times = list(walk_pages(server))[1:]
        tenth = max(len(times) // 10, 1)
        first, pages, last = first + times[:tenth], pages + times, last + times[-tenth:]
    parts = {"one page, ms": pages, "first tenth, ms": first, "last tenth, ms": last}
    return {name: statistics.median(times) * 1000 for name, times in parts.items()} | {"whole walk, s": sum(times)}


def walk_pages(server):
    """Yield the seconds that each page takes, over one connection."""
    path = "/courses?limit=50"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        while path:
            started = time.perf_counter()
            _, link = server.fetch(connection, path)
            yield time.perf_counter() - started
            following = re.search(r'<([^>]*)>; rel="next"', link)
            path = following and following[1]


# -- capacity ----------------------------------------------------------------------------------------------------------


def capacity(_rounds, seconds, postgresql):
    """Measure on PostgreSQL how each kind of request grows, with and without more indexes, and what it costs in CPU."""
    times, costs = {name: {} for name in TIMES}, {name: {} for name in COSTS}
    for courses in SIZES[2:]:
        with filled_database(postgresql, courses) as url, Server(WORKERS["granian, 1 worker"], url, courses) as server:
            for name, (path, script) in COSTS.items():
                add_figures(costs[name], measure_cpu(server, postgresql, path, script, seconds))
            add_times(times, f"{courses:,}", server)
            execute(url, INDEXES)
            execute(url, "VACUUM ANALYZE")
            add_times(times, f"{courses:,}, indexed", server)
        print(f"capacity: {courses:,} courses", file=sys.stderr, flush=True)
    print_table("one request, ms", times)
    print_table("CPU time of one request, ms", costs)
    plan = {}
    for name, rate in PLAN.items():
        for server in ("API", "PostgreSQL"):
            (milliseconds,) = costs[name][f"{courses:,}: {server}"]
            plan.setdefault(f"{name}, {rate:,}/s", {})[f"cores, {server}"] = [rate * milliseconds / 1000]
    columns = next(iter(plan.values()))
    plan["**in all**"] = {column: [sum(row[column][0] for row in plan.values())] for column in columns}
    print_table(f"plan, at {courses:,} courses", plan)


def add_times(table, column, server):
    """Add the time of each request in ms; leave out what takes so long that it gets 503."""
    places = {"middle": server.courses // 2, "last_page": server.courses - 50}
    for name, path in TIMES.items():
        with contextlib.suppress(RuntimeError):
            add_figures(table[name], {column: server.median_ms(path.format(**places), 15)})


def measure_cpu(server, postgresql, path, script, seconds):
    """Load the server; return the CPU time of one request in ms, by the API and by PostgreSQL, which must be local."""
    with contextlib.closing(psycopg2.connect(postgresql)) as connection:
        postmaster = psutil.Process(connection.info.backend_pid).ppid()
    before = cpu_seconds(server.process.pid), cpu_seconds(postmaster)
    requests = server.load(path, script, seconds) * seconds
    after = cpu_seconds(server.process.pid), cpu_seconds(postmaster)
    api, database = [(end - start) * 1000 / requests for start, end in zip(before, after, strict=True)]
    return {f"{server.courses:,}: API": api, f"{server.courses:,}: PostgreSQL": database}


# -- The command line --------------------------------------------------------------------------------------------------

PARTS = {  # each with its rounds
    "compare": (compare, 5),
    "features": (features, 10),
    "growth": (growth, 5),
    "walk": (walk, 3),
    "servers": (servers, 3),
    "capacity": (capacity, 1),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--rounds", type=int, help="; ".join(f"{part} {rounds}" for part, (_, rounds) in PARTS.items()))
    parser.add_argument("--seconds", type=int, default=2, help="of each load (2)")
    parser.add_argument("--postgresql", default=os.environ.get("POSTGRES_URL"), help="postgresql://user@host/name")
    arguments = parser.parse_args()
    if "capacity" in arguments.parts and not arguments.postgresql:
        sys.exit("capacity needs PostgreSQL; set --postgresql")
    print(describe())
    for part in arguments.parts:
        measure, rounds = PARTS[part]
        print(f"\n## {part}")
        measure(arguments.rounds or rounds, arguments.seconds, arguments.postgresql)


if __name__ == "__main__":
    main()
