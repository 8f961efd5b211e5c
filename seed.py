"""Fill the database that DATABASE_URL names (sqlite:///courses.db).

python seed.py             add the dummy courses and the dummy user, where they are missing
python seed.py user NAME   add a user, or change the password; it is asked for, or read from standard input
"""

import argparse
import contextlib
import getpass
import sys

import peewee

import models
from models import Course, User

DUMMY_COURSES = [  # code, name, instructor
    ("CSE115", "Introduction to programming language", "John stuart"),
    ("CSE465", "Introduction to neural network", "Andrew Ng"),
]
DUMMY_USER = ("faisal", "faisal")  # name, password


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
    username = models.Username(username)
    password = read_password(username)
    try:
        User.create_user(username, password)
        return f"Added the user {username}."
    except peewee.IntegrityError:
        User.change_password(username, password)
        return f"Changed the password of {username}."


def main():
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    user = parser.add_subparsers(dest="command", metavar="user NAME").add_parser("user")
    user.add_argument("name", metavar="NAME")
    arguments = parser.parse_args()
    try:
        models.prepare()
        if arguments.command == "user":
            print(set_user(arguments.name))
        else:
            print("Added: " + (", ".join(add_dummy_data()) or "nothing, the dummy data is there"))
        courses, users = Course.select().count(), User.select().count()
        print(f"{models.DATABASE_NAME} now has: {courses} courses, {users} users")
    except (ValueError, peewee.PeeweeException) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
