"""Look for faults for minutes, 20,000 requests of each kind: python tests/fuzz.py [SEED]. With any the status is 1.

Schemathesis makes requests of openapi.yaml and sends them to a real server. Hypothesis spoils good requests with bytes of
any kind, and calls the app with them as a WSGI server does. The same SEED makes the same requests.
"""

import contextlib
import functools
import io
import json
import logging
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback

import hypothesis
from hypothesis.strategies import binary, booleans, builds, just, lists, sampled_from, tuples

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from conftest import ROOT, Server  # (sets DATABASE_URL, before it imports the app)

import course_api
import seed as dummy

CASES = 20_000
ROUND = 250  # examples of each operation; in longer rounds the lists get long, and the cases slow


def send_round(seed):
    """Return how many requests schemathesis sent to a new server, and what it and the server's log say is wrong."""
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Server(folder, TOKEN_SECONDS="9999")) as server:
        environment = os.environ | {"DATABASE_URL": f"sqlite:///{folder}/courses.db", "PYTHONPATH": str(ROOT / "tests")}
        subprocess.run([sys.executable, ROOT / "seed.py"], env=environment, check=True, capture_output=True)
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", ROOT / "tests/schemathesis.toml", "run"]
        command += [f"{server.url}/openapi.yaml", "--checks", "all", "--max-examples", str(ROUND), "--seed", str(seed)]
        environment["TOKEN"] = server.log_in()
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        faults = [line for line in server.output if " ERROR " in line]
        if done.returncode:
            faults.append(done.stdout.partition("= FAILURES =")[2] or done.stdout + done.stderr)
        return int(re.search(r"(\d+) generated|$", done.stdout)[1] or 0), faults


def send_requests(seed):
    """Return how many requests schemathesis sent to one new server after another, and what is wrong."""
    cases, faults = 0, []
    while cases < CASES and not faults:
        more, faults = send_round(seed)
        cases, seed = cases + more, seed + 1
    return cases, faults


ANY = binary().map(lambda data: data.decode("latin1"))
NUMBERS = sampled_from(["", "0", "1", "-1", "9" * 5000, "99999999999", "²", "1e3", " 5", "+5", "0x5", "5,5", "nan"])
TYPES = sampled_from(["application/json", "text/csv", "application/x-www-form-urlencoded"])
WORDS = sampled_from(
    ["*", "*/*", ";q=", '"', "W/", "Bearer ", "bytes=", "-", ",", ";", " ", "Mon, 01 Jan 9999 00:00:00 GMT"]
)
VALUE = ANY | lists(WORDS | NUMBERS | TYPES | ANY).map("".join)
PARAMETER = sampled_from(["q", "instructor", "sort", "limit", "offset", "after"])
QUERY = ANY | lists(builds("{}={}".format, PARAMETER, NUMBERS | VALUE), min_size=1).map("&".join)
FIELDS = ("code", "name", "instructor", "username", "password")
OBJECT = (
    tuples(*(ANY | sampled_from(["faisal", "CSE115", None, 0, []]) for _ in FIELDS))
    .map(functools.partial(zip, FIELDS))
    .map(dict)
)
JSON = (OBJECT | OBJECT | lists(OBJECT)).map(lambda value: json.dumps(value).encode())
CSV = lists(builds("{},{},{}".format, ANY, ANY, ANY)).map(
    lambda rows: "\n".join(["code,name,instructor", *rows]).encode()
)
FORM = builds("username={}&password={}".format, VALUE, VALUE).map(str.encode)
COURSE = just("/courses/CSE115") | builds("/courses/{}".format, ANY)
ADDRESS = sampled_from(["", "::1", "fe80::1%eth0", "::ffff:192.0.2.1", "::1%a/b", "a:b", "unix:", "[::1]:80"])
GOOD = (  # method, path, type of the body, and body
    tuples(sampled_from(["GET", "HEAD"]), sampled_from(["/courses", "/courses/"]), just(""), just(b""))
    | tuples(sampled_from(["GET", "HEAD"]), COURSE, just(""), just(b""))
    | tuples(just("GET"), sampled_from(["/", "", "/health", "/docs", "/openapi.yaml"]), just(""), just(b""))
    | tuples(just("POST"), just("/login"), just("application/json"), JSON)
    | tuples(just("POST"), just("/login"), just("application/x-www-form-urlencoded"), FORM)
    | tuples(just("POST"), just("/courses"), just("application/json"), JSON)
    | tuples(just("POST"), just("/courses"), just("text/csv"), CSV)
    | tuples(sampled_from(["PUT", "PATCH", "DELETE", "OPTIONS"]), COURSE, just("application/json"), JSON)
)
HEADERS = ["ACCEPT", "AUTHORIZATION", "COOKIE", "EXPECT", "IF_MATCH", "IF_MODIFIED_SINCE", "IF_NONE_MATCH", "ORIGIN"]
HEADERS += ["RANGE", "TRANSFER_ENCODING", "X_FORWARDED_FOR", "X_HTTP_METHOD_OVERRIDE"]
SPOILT = lists(
    tuples(sampled_from([f"HTTP_{name}" for name in HEADERS]), VALUE)
    | tuples(just("QUERY_STRING"), QUERY)
    | tuples(just("CONTENT_LENGTH"), NUMBERS | just("٣") | ANY)
    | tuples(just("CONTENT_TYPE"), TYPES | VALUE)
    | tuples(just("REMOTE_ADDR"), ADDRESS | ANY)
    | tuples(just("wsgi.input_terminated"), booleans())
    | tuples(sampled_from(["REQUEST_METHOD", "PATH_INFO"]), ANY),
    max_size=3,
)


def make_environ(good, body, spoilt):
    """Return a good request, with a body that may be another, and with what is spoilt of it."""
    method, path, content_type, good_body = good
    body = good_body if body is None else body
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": "", "CONTENT_TYPE": content_type}
    environ |= {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body), "wsgi.errors": sys.stderr}
    return environ | {"HTTP_AUTHORIZATION": "Bearer " + course_api.make_token("faisal")} | dict(spoilt)


def call(environ):
    """Call the app, and hold its answer to what WSGI and the README promise."""
    answers = []
    with contextlib.ExitStack() as stack:
        chunks = course_api.app(environ, lambda status, headers, _error=None: answers.append((status, headers)))
        stack.callback(getattr(chunks, "close", list))
        body = b"".join(chunks)
    ((status, headers),) = answers
    assert re.fullmatch(r"[1-4]\d\d [ -~]+", status), status
    for header in headers:
        assert re.fullmatch(r"[\w-]+: [ -~\x80-\xff]*", ": ".join(header)), header
    if environ["REQUEST_METHOD"] == "HEAD" or status[:3] in ("204", "304"):
        assert not body
    else:
        assert int(dict(headers)["Content-Length"]) == len(body)
        assert status[0] != "4" or json.loads(body)["error"]


def call_app(seed):
    """Return how many times the app was called, and what is wrong."""
    cases, log = 0, io.StringIO()
    logging.basicConfig(stream=log)
    dummy.add_dummy_data()

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=hypothesis.HealthCheck)
    @hypothesis.given(builds(make_environ, GOOD, just(None) | just(None) | just(None) | binary(), SPOILT))
    def test(environ):
        nonlocal cases
        cases += 1
        call(environ)

    try:
        test()
    except Exception:  # noqa: BLE001 (whatever it is, it is what was looked for)
        return cases, [traceback.format_exc(), log.getvalue()[-3000:]]
    return cases, []


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(10**6)
    found = []
    for look in (call_app, send_requests):
        started = time.monotonic()
        cases, faults = look(seed)
        found += faults
        verdict = f"faults, see above; again with: python tests/fuzz.py {seed}" if faults else "no fault"
        print(
            *faults,
            f"{look.__name__}: {cases} cases in {time.monotonic() - started:.0f} s, {verdict}",
            sep="\n",
            flush=True,
        )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
