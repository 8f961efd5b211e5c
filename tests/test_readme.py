"""The README's console session, run line for line by a shell against a real server, gives what it prints."""

import re
import subprocess

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.sqlite  # which writes JSON without blanks
def test_the_readmes_session_gives_what_it_prints(run, start):
    assert run("seed.py").returncode == 0
    host = start(CORS_ORIGINS="https://a.example").url.removeprefix("http://")
    session = "".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL))
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert len(steps) > 10
    # One shell for all, as at a terminal; a line of its own ends each command's output.
    script = "".join(f"{command.replace('localhost:5000', host)}; echo; echo =====\n" for command, _ in steps)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
    printed = [output.strip().replace("\r", "") for output in done.stdout.split("=====\n")]
    for (command, promised), given in zip(steps, printed, strict=False):
        assert given == promised.strip(), command
    assert (done.stderr, printed[len(steps) :]) == ("", [""])


def test_the_readme_lists_every_route_and_setting():
    import course_api

    for route in course_api.app.routes:
        if route.rule != "/courses/":  # the list too, for who follows the Location of a DELETE
            assert f"`{route.method} {route.rule.partition('<name')[0]}`" in README
    for name in [*course_api.Settings.__struct_fields__, "DATABASE_URL"]:
        assert f"| `{name}` |" in README
        assert f"    {name} " in course_api.__doc__
