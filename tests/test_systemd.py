"""The systemd units, as systemd checks them, and what their commands do."""

import contextlib
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
from servers import ROOT

pytestmark = pytest.mark.sqlite
UNITS = sorted((ROOT / "deploy").glob("course-api*.*"))
API, BACKUP = [(ROOT / "deploy" / name).read_text() for name in ("course-api.service", "course-api-backup.service")]


@pytest.fixture
def installed(seeded, tmp_path):
    """A folder that holds what the unit's head comment copies to /opt/course-api, and an interpreter."""
    folder = tmp_path / "opt"
    folder.mkdir()
    (command,) = re.findall(r"(?m)^# +(cp -r .*) /opt/course-api$", API)
    subprocess.run(f"{command} {folder}", shell=True, cwd=ROOT, check=True)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (folder / ".venv/bin/python").chmod(0o755)
    return folder


def run_unit(text, folder, state):
    """Run a unit's ExecStart and ExecStartPost as systemd does, with its state in a folder; a failure raises."""
    words = [word.split("=", 1) for line in re.findall(r"(?m)^Environment=(.*)", text) for word in line.split()]
    environment = {**os.environ, **{name: value.replace("/var/lib/course-api", str(state)) for name, value in words}}
    for line in re.findall(r"(?m)^ExecStart(?:Post)?=(.*)", text):
        command = line.replace("%%", "%").replace("$$", "$").replace("/var/lib/course-api", str(state))
        subprocess.run(shlex.split(command), cwd=folder, env=environment, check=True, timeout=60, umask=0o077)


@pytest.mark.integration
def test_systemd_finds_no_fault_in_the_units(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("install systemd: apt-get install systemd")
    paths = [shutil.copy(unit, tmp_path) for unit in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if "course-api" in line]
    assert (done.returncode, ours) == (0, [])


def test_a_database_that_is_late_at_boot_does_not_stop_the_api_for_good():
    unit, service = re.split(r"(?m)^\[Service\]$", API)
    assert "\nStartLimitIntervalSec=0\n" in unit and "\nRestart=on-failure\nRestartSec=5\n" in service


def test_a_backup_is_made_and_only_those_older_than_two_weeks_are_deleted(installed, seeded, tmp_path):
    folder = tmp_path / "backups"
    folder.mkdir()
    for days in (1, 13, 15, 40):
        (folder / f"courses-{days}.db").touch()
        os.utime(folder / f"courses-{days}.db", times=(time.time() - days * 86400,) * 2)
    run_unit(BACKUP, installed, tmp_path)
    kept = {file.name for file in folder.iterdir()}
    assert {"courses-1.db", "courses-13.db"} < kept and len(kept) == 3
    new = max(folder.iterdir(), key=os.path.getmtime)
    assert re.fullmatch(r"courses-\d{4}-\d\d-\d\dT\d{6}\.db", new.name) and new.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(sqlite3.connect(new)) as copy:
        assert copy.execute("SELECT COUNT(*) FROM courses").fetchone() == (2,)


def test_no_old_backup_is_deleted_if_the_new_one_fails(installed, seeded, tmp_path):
    folder = tmp_path / "backups"
    folder.mkdir()
    (folder / "courses-old.db").touch()
    os.utime(folder / "courses-old.db", times=(0, 0))
    seeded.unlink()
    with pytest.raises(subprocess.CalledProcessError):
        run_unit(BACKUP, installed, tmp_path)
    assert [file.name for file in folder.iterdir()] == ["courses-old.db"]
