"""Fill the database that DATABASE_URL names (sqlite:///courses.db), or take out what it holds.

python seed.py               add the dummy courses and the dummy user, where they are missing
python seed.py user NAME     add a user, or change the password; it is asked for, or read from standard input
python seed.py import FILE   add the courses of a file, CSV or JSON, all or none; - is standard input
                             --update changes courses that exist, instead of refusing the file
python seed.py export FILE   write every course to a file, JSON if its name ends so, else CSV; - is standard output
python seed.py backup FILE   copy the database to a new file, whole, while it is in use (SQLite)
python seed.py random N      add so many made-up courses; --seed NUMBER makes others, the same for the same number
"""

import argparse
import contextlib
import functools
import getpass
import json
import random
import sqlite3
import sys

import peewee
from tqdm import tqdm

import models
from models import Course, User

DUMMY_COURSES = [  # code, name, instructor
    ("CSE115", "Introduction to programming language", "John stuart"),
    ("CSE465", "Introduction to neural network", "Andrew Ng"),
]
DUMMY_USER = ("faisal", "faisal")  # name, password
SUBJECTS = ("ART", "BIO", "CHEM", "CSE", "ECON", "ENGL", "GEOG", "HIST", "LAW", "MATH", "MUS", "PHIL", "PHYS", "SOC")
KINDS = ("Introduction to", "Foundations of", "Methods of", "Topics in", "Seminar in", "Advanced", "History of")
TOPICS = ("Algebra", "Climate", "Data Structures", "Democracy", "Evolution", "Fashion", "Genetics", "Geometry", "Jazz")
TOPICS += ("Justice", "Language", "Light", "Markets", "Memory", "Migration", "Networks", "Poetry", "Probability")
SURNAMES = ("Bose", "Curie", "Franklin", "Gödel", "Hopper", "Lovelace", "Meitner", "Noether", "Rubin", "Turing", "Wu")
FORENAMES = ("Ada", "Alan", "Chien-Shiung", "Emmy", "Grace", "Kurt", "Lise", "Marie", "Rosalind", "Satyendra", "Vera")

progress = functools.partial(tqdm, unit=" courses", leave=False, disable=None)  # None: only at a terminal


def add_dummy_data():
    """Add the dummy courses and the dummy user where they are missing; return the names of what was added."""
    added = []
    for code, name, instructor in DUMMY_COURSES:
        with contextlib.suppress(peewee.IntegrityError):
            Course.add_course(code, instructor, name)
            added.append(f"course {code}")
    with contextlib.suppress(peewee.IntegrityError):
        User.create_user(*DUMMY_USER)
        added.append(f"user {DUMMY_USER[0]}")
    return added


# -- Users -------------------------------------------------------------------------------------------------------------


def read_password(username):
    """Return a password: asked for twice at a terminal, else one line of standard input; raise ValueError."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass(f"Password for {username}: ")
    if getpass.getpass("The same again: ") != password:
        raise ValueError("the two passwords differ, nothing is changed")
    return password


def set_user(username):
    """Add a user or change the password; return the sentence that says which."""
    username = models.clean("username", username)
    password = read_password(username)
    try:
        User.create_user(username, password)
        return f"Added the user {username}."
    except peewee.IntegrityError:
        User.change_password(username, password)
        return f"Changed the password of {username}."


# -- Courses -----------------------------------------------------------------------------------------------------------


def read_courses(path):
    """Return the courses of a file, a dict of each one's number and its fields; raise ValueError if it has none."""
    with open(0 if path == "-" else path, encoding="utf-8-sig", newline="") as file:
        text = file.read()
    if text.lstrip()[:1] not in ("[", "{"):
        return models.read_csv(text)
    courses = json.loads(text)
    if isinstance(courses, dict):  # as GET /courses returns
        courses = courses.get("courses")
    if not isinstance(courses, list):
        raise ValueError("the JSON is not a list of courses")
    return dict(enumerate(courses, 1))


def import_courses(path, update):
    """Add the courses of a file, all or none; return the sentence that says how many."""
    courses, before = read_courses(path), Course.select().count()
    try:
        count = Course.add_courses(courses, update, progress)
    except models.UploadError as error:
        for number, message in error.rows:
            print(f"row {number}: {message}", file=sys.stderr)
        raise
    added = Course.select().count() - before
    return f"Added {added:,} courses" + (f", changed {count - added:,}." if update else ".")


def export_courses(path):
    """Write every course to a file; return the sentence that says how many."""
    total, courses, _ = Course.get_page()
    content = courses if path.endswith(".json") else models.make_csv(courses, progress)
    with open(1 if path == "-" else path, "wb", closefd=path != "-") as file:
        file.write(content)
    return f"Wrote {total:,} courses to {path}."


def make_courses(count, number):
    """Return so many made-up courses as dicts, the same for the same number, none with a code that is taken."""
    dice = random.Random(number)  # noqa: S311 (nothing secret)
    taken = {code for (code,) in Course.select(Course.code).tuples()}
    courses, highest = [], 1000 + count
    while len(courses) < count:
        highest += 1
        code = f"{dice.choice(SUBJECTS)} {dice.randrange(100, highest)}"
        name = f"{dice.choice(KINDS)} {dice.choice(TOPICS)}"
        instructor = f"{dice.choice(SURNAMES)}, {dice.choice(FORENAMES)}"
        if code not in taken:
            taken.add(code)
            courses.append({"code": code, "name": name, "instructor": instructor})
    return courses


def main():
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="user, import, export, backup or random")
    commands.add_parser("user").add_argument("name", metavar="NAME")
    importer = commands.add_parser("import")
    importer.add_argument("file", metavar="FILE")
    importer.add_argument("--update", action="store_true")
    for command in ("export", "backup"):
        commands.add_parser(command).add_argument("file", metavar="FILE")
    randomizer = commands.add_parser("random")
    randomizer.add_argument("count", metavar="N", type=int)
    randomizer.add_argument("--seed", metavar="NUMBER", type=int, default=1)
    given = parser.parse_args()
    out = sys.stdout
    try:
        if given.command != "backup":  # which makes nothing, not even a table
            with models.exit_if_unusable():
                models.init_db()
        if given.command == "user":
            said = set_user(given.name)
        elif given.command == "import":
            said = import_courses(given.file, given.update)
        elif given.command == "export":
            said, out = export_courses(given.file), sys.stderr  # the courses may be on standard output
        elif given.command == "backup":
            models.backup(given.file)
            said = f"Copied the database to {given.file}."
        elif given.command == "random":
            courses = dict(enumerate(make_courses(given.count, given.seed), 1))
            added = Course.add_courses(courses, watch=progress)
            said = f"Added {added:,} courses."
        else:
            said = "Added: " + (", ".join(add_dummy_data()) or "nothing, the dummy data is there")
        print(said, file=out)
        courses, users = Course.select().count(), User.select().count()
        print(f"{models.DATABASE_NAME} now has: {courses} courses, {users} users", file=out)
    except (ValueError, OSError, RecursionError, sqlite3.Error, peewee.PeeweeException) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
