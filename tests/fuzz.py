"""Look for bugs for minutes, with 20,000 requests of each of two kinds.

Schemathesis generates requests from openapi.yaml and sends them to a real server. Hypothesis corrupts good requests
with bytes of any kind, and calls the app with them as a WSGI server does. The exit status is 1 if they find a bug.
"""

import argparse
import contextlib
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
from description import PATHS
from hypothesis.strategies import binary, builds, fixed_dictionaries, just, lists, sampled_from, tuples

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from catalogue import make_token
from processes import ROOT, Server, run_program

import course_api
import database
import models
import seed as dummy

CASES = 20_000
ROUND = 250  # examples of each operation; in longer rounds the lists get long, and the cases slow


def run_schemathesis(server, folder, *options):
    """Run every check of schemathesis on a server; return how many requests it sent, and all faults found."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", ROOT / "tests/schemathesis.toml", "run"]
    command += [f"{server.url}/openapi.yaml", "--checks", "all", *options]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "TOKEN": server.log_in()}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    cases = int(re.search(r"(\d+) generated|$", done.stdout)[1] or 0)
    faults = [line for line in server.output if " ERROR " in line]
    if done.returncode or f"{cases} generated, {cases} passed" not in done.stdout:
        faults.append(done.stdout.partition("= FAILURES =")[2] or done.stdout + done.stderr)
    return cases, faults


def send_round(seed):
    """Return how many requests schemathesis sent to a new server, and the faults that it and the server's log name."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/courses.db"
        run_program(folder, "seed.py", DATABASE_URL=url).check_returncode()
        with contextlib.closing(Server(folder, TOKEN_SECONDS="9999", DATABASE_URL=url)) as server:
            return run_schemathesis(server, folder, "--max-examples", str(ROUND), "--seed", str(seed))


def send_requests(seed):
    """Return how many requests schemathesis sent, to one new server after another, the faults, and the last seed."""
    cases, faults = send_round(seed)
    while cases < CASES and not faults:
        seed += 1
        more, faults = send_round(seed)
        cases += more
    return cases, faults, seed


NOTHING = just(b"")


def good(methods, path, content_type="", body=NOTHING):
    return tuples(sampled_from(methods.split()), path, just(content_type), body)


ANY = binary().map(lambda data: data.decode("latin1"))
TYPES = sampled_from(["application/json", "text/csv", "application/x-www-form-urlencoded"])
NUMBERS = sampled_from(["", "0", "1", "-1", "9" * 5000, "99999999999", "²", "1e3", " 5", "+5", "0x5", "5,5", "nan"])
NUMBERS |= sampled_from(["true", "id:1:1", "-name:2:a"])
WORDS = sampled_from(["*", "*/*", ";q=", '"', "W/", "Bearer ", "key_", "bytes=", "1 Jan 9999"])
WORDS |= sampled_from(["-", ",", ";", " ", "%", "%FF"])
VALUE = ANY | lists(WORDS | NUMBERS | TYPES | ANY).map("".join)
PARAMETERS = sampled_from(
    ["token", *(item["name"] for method in ("get", "post") for item in PATHS["/courses"][method]["parameters"])]
)
QUERY = ANY | lists(builds("{}={}".format, PARAMETERS, NUMBERS | VALUE), min_size=1).map("&".join)
FIELD = ANY | sampled_from(["faisal", "CSE115", None, 0, []])
OBJECT = fixed_dictionaries(dict.fromkeys([*models.FIELDS, "username", "password"], FIELD))
JSON = (OBJECT | OBJECT | lists(OBJECT) | fixed_dictionaries({"courses": lists(OBJECT)})).map(
    lambda value: json.dumps(value).encode()
)
CSV = builds("code,name,instructor{}".format, lists(builds("\n{},{},{}".format, ANY, ANY, ANY)).map("".join)).map(
    str.encode
)
FORM = builds("username={}&password={}".format, VALUE, VALUE).map(str.encode)
LOGIN, COURSES, COURSE = just("/login"), just("/courses"), just("/courses/CSE115") | builds("/courses/{}".format, ANY)
PAGES = sampled_from(["/", "", "/health", "/docs", "/openapi.yaml", "/courses/", "/docs/swagger_style.css"])
GOOD = good("GET HEAD", COURSES | COURSE | PAGES) | good("PUT PATCH DELETE OPTIONS", COURSE, "application/json", JSON)
GOOD |= good("POST", LOGIN, "application/json", JSON) | good("POST", LOGIN, "application/x-www-form-urlencoded", FORM)
GOOD |= good("POST", COURSES, "application/json", JSON) | good("POST", COURSES, "text/csv", CSV)
ADDRESSES = sampled_from(["", "::1", "fe80::1%eth0", "::ffff:192.0.2.1", "::1%a/b", "a:b", "unix:", "[::1]:80"])
HEADERS = (
    "ACCEPT ACCESS_CONTROL_REQUEST_HEADERS AUTHORIZATION CONTENT_ENCODING COOKIE EXPECT IF_MATCH IF_MODIFIED_SINCE "
    "IF_NONE_MATCH ORIGIN RANGE TRANSFER_ENCODING X_FORWARDED_FOR"
)
CORRUPTED = tuples(sampled_from([f"HTTP_{name}" for name in HEADERS.split()]), VALUE) | tuples(
    just("QUERY_STRING"), QUERY
)
CORRUPTED |= tuples(just("CONTENT_LENGTH"), NUMBERS | just("٣") | ANY) | tuples(just("CONTENT_TYPE"), TYPES | VALUE)
CORRUPTED |= tuples(sampled_from(["REQUEST_METHOD", "PATH_INFO"]), ANY) | tuples(just("REMOTE_ADDR"), ADDRESSES | ANY)
CORRUPTED |= just(("wsgi.input_terminated", True))


def call(request, other_body, corrupted):
    """Call the app with a good request, some of it corrupted; check that the response is one of WSGI and no 5xx."""
    method, path, content_type, body = request
    body = body if other_body is None else other_body
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": "", "CONTENT_TYPE": content_type}
    environ |= {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body), "wsgi.errors": sys.stderr}
    environ |= {"HTTP_AUTHORIZATION": "Bearer " + make_token("faisal")} | dict(corrupted)
    responses = []
    chunks = course_api.app(environ, lambda status, headers, _error=None: responses.append((status, headers)))
    body = b"".join(chunks)
    getattr(chunks, "close", list)()
    ((status, headers),) = responses
    assert re.fullmatch(r"[1-4]\d\d [ -~]+", status), status
    assert all(re.fullmatch(r"[\w-]+: [ -~\x80-\xff]*", ": ".join(header)) for header in headers), headers
    if environ["REQUEST_METHOD"] == "HEAD" or status[:3] in ("204", "304"):
        assert not body
    else:
        assert int(dict(headers)["Content-Length"]) == len(body)
        assert status[0] != "4" or json.loads(body)["error"]


def call_app(seed):
    """Return how many times the app was called, the faults, and the seed."""
    cases, log = 0, io.StringIO()
    logging.basicConfig(stream=log)
    database.init_db()
    dummy.add_dummy_data()

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=hypothesis.HealthCheck)
    @hypothesis.given(GOOD, just(None) | just(None) | just(None) | binary(), lists(CORRUPTED, max_size=3))
    def test(request, other_body, corrupted):
        nonlocal cases
        cases += 1
        call(request, other_body, corrupted)

    try:
        test()
    except Exception:  # noqa: BLE001 (any exception is a fault)
        return cases, [traceback.format_exc(), log.getvalue()[-3000:]], seed
    return cases, [], seed


def main():
    """Look for bugs in both ways, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "seed", metavar="SEED", type=int, nargs="?", help="repeats a run, which prints it (a random one)"
    )
    first, failed = parser.parse_args().seed, False
    for look in (call_app, send_requests):
        started = time.monotonic()
        cases, faults, seed = look(random.randrange(10**6) if first is None else first)
        verdict = f"faults, see above; to repeat them: python tests/fuzz.py {seed}" if faults else "no faults"
        print(*faults, f"{look.__name__}: {cases} cases in {time.monotonic() - started:.0f} s, {verdict}", sep="\n")
        failed = failed or bool(faults)
    sys.exit(failed)


if __name__ == "__main__":
    main()
