"""The README's commands work and print what it says, and it lists every route, setting and file."""

import re
import subprocess
import sys

import pytest
from catalogue import only_required
from processes import ROOT, database_url

import course_api
import settings

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()


def run_in_bash(script, **options):
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.sqlite  # which writes JSON without blanks
def test_the_curl_session_prints_what_the_readme_says(run, start):
    assert run("seed.py").returncode == 0
    session = "".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL))
    session = session.replace("http://127.0.0.1:5000", start().url)
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert len(steps) > 10
    # One shell runs all commands, as at a terminal; a separator follows the output of each.
    done = run_in_bash("".join(f"{command}; echo; echo =====\n" for command, _ in steps))
    outputs = [output.strip().replace("\r", "") for output in done.stdout.split("=====\n")]
    for (command, expected), output in zip(steps, outputs, strict=False):
        assert only_required(output).strip() == expected.strip(), command
    assert (done.stderr, outputs[len(steps) :]) == ("", [""])


@pytest.mark.sqlite  # which backup and restore need
@pytest.mark.parametrize("text", [README, OPERATIONS], ids=["README", "operations"])
def test_every_command_of_seed_works(run, tmp_path, text):
    assert run("seed.py").returncode == 0
    (tmp_path / "password.txt").write_text("correct horse\n")
    (tmp_path / "courses.csv").write_text("code,name,instructor\nCSE225,Data structures,Ada Lovelace\n")
    (tmp_path / "list.csv").write_text("Dept,Number,Title,Instructor 1,Instructor 2\nCSE,226,Graphs,Ada,Grace\n")
    commands = re.findall(r"^ {4}(python seed\.py.*?)(?: +#.*)?$", text, re.MULTILINE)
    assert commands
    python = f'python() {{ "{sys.executable}" "{ROOT}/$@"; }}\n'
    for command in commands:
        environment = {"DATABASE_URL": database_url(tmp_path)}
        done = run_in_bash(python + command, cwd=tmp_path, env=environment, input="correct horse\n")
        assert done.returncode == 0, (command, done.stderr)


def test_the_readme_lists_every_route():
    for route in course_api.app.routes:
        if not re.match("/courses/$|/docs/", route.rule):  # another way to write a route, and the files of a page
            assert f"`{route.method} {route.rule}`" in README


def test_the_readme_has_the_table_of_the_settings():
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\S+) \| (.+) \|$", README, re.MULTILINE)
    table = {name: (default, meaning.replace("`", "")) for name, default, meaning in rows}
    assert table == {name: (default or "(none)", text) for name, (default, text) in settings.MEANINGS.items()}
    assert list(table) == list(settings.MEANINGS)


def test_the_layout_names_each_file_and_folder():
    layout = README.partition("### Layout")[2].partition("\n\nEvery")[0]
    first = " ".join(re.findall(r"^\| (.*?) \|", layout, re.MULTILINE))
    names = re.findall(r"`(.*?)`", first)
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert {name for name in names if name.endswith(".py")} == {path.name for path in ROOT.glob("*.py")}


@pytest.mark.parametrize(
    "path", ["README.md", "SECURITY.md", "CHANGELOG.md", "docs/operations.md", "docs/extending.md"]
)
def test_every_link_leads_to_a_file_and_a_heading(path):
    text = (ROOT / path).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text)
    assert links
    for target, heading in links:
        file = (ROOT / path).parent / target if target else ROOT / path
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
