"""The courses, sentences and steps that tests share.

Rows are made from the fields that Course declares, so that a field with a default changes no test.
"""

import csv
import io
import json

import processes  # noqa: F401 (sets the environment that models reads)

import course_api
import database
import models

# -- Fields ------------------------------------------------------------------------------------------------------------

DEFAULTS = models.DEFAULTS
FIELDS = tuple(models.FIELDS)
REQUIRED = ("code", "name", "instructor")  # the tutorial's
assert {*REQUIRED, *DEFAULTS} == {*FIELDS}
TEXTS = tuple(field for field in FIELDS if isinstance(DEFAULTS.get(field, ""), str))


def course(code, name, instructor, **others):
    """Return a course as responses have it, without its id; fields that are not given have their defaults."""
    values = DEFAULTS | {"code": code, "name": name, "instructor": instructor} | others
    return {field: values[field] for field in FIELDS}


def another(value):
    """Return a value that a field could have instead of this one."""
    return value + 1 if isinstance(value, int) else value + "x"


def join_with_or(names):
    """Return names as a sentence lists them: "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}"


# -- Courses -----------------------------------------------------------------------------------------------------------

CSE115 = course("CSE115", "Introduction to programming language", "John stuart")
CSE465 = course("CSE465", "Introduction to neural network", "Andrew Ng")
BODY = {"code": "CSE225", "name": "Data structures", "instructor": "Ada Lovelace"}  # as the tutorial's clients send it
NEW = course(**BODY)
COURSE = course("AAS 100", "Intro Asian American Studies", "Geng, Zhe")
TWO = [NEW, COURSE]
CHANGE = {"name": "Basics", "instructor": "Grace Hopper"}
LOGIN = {"username": "faisal", "password": "faisal"}

# -- Sentences ---------------------------------------------------------------------------------------------------------

CODE_MISSING = "course code must be provided"
BOTH = "Course name and instructor's name must be provided"
EITHER = "Course name or instructor's name must be provided"
UNKNOWN = "Course code is not found in the courses"
TAKEN = "Course code CSE115 is in the courses already"
CODE_RULE = "code must be 1 to 20 characters, not only dots, with no / or control characters"
NAME_RULE = "name must be 1 to 120 characters, with no control characters"
INSTRUCTOR_RULE = "instructor must be 0 to 120 characters, with no control characters"

# -- A client's steps --------------------------------------------------------------------------------------------------


def make_token(username="faisal"):
    """Return a token as POST /login makes it."""
    return course_api.make_token(username, models.User.get(models.User.username == username).stamp)


def without_id(row):
    assert isinstance(row.pop("id"), int)
    return row


def get(client, code):
    return without_id(client.get(f"/courses/{code}").json)


def get_list(client, path="/courses"):
    return [without_id(row) for row in client.get(path).json["courses"]]


def codes(response):
    return [row["code"] for row in response.json["courses"]]


def post_csv(client, text, status=201, path="/courses", content_type="text/csv"):
    body = text if isinstance(text, bytes) else text.encode()
    return client.post(path, body, content_type=content_type, status=status)


# -- Courses in files and in SQL ---------------------------------------------------------------------------------------

HEADER = "code,name,instructor\n"  # a file's, which may leave out fields with a default
EXPORT_HEADER = ",".join(FIELDS) + "\r\n"


def make_csv(*rows, fields=FIELDS):
    """Return courses as the CSV that the API and seed.py write, and read."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, fields)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def printed_csv(*rows):
    """Return courses as `seed.py export -` prints them, read as text."""
    return make_csv(*rows).replace("\r\n", "\n")


def only_required(text):
    """Return what was printed of courses, in JSON or CSV with plain line ends, less the fields that have defaults.

    A field whose value is not its default stays.
    """
    for name, default in DEFAULTS.items():
        text = text.replace(f',"{name}":{json.dumps(default, ensure_ascii=False)}', "")
    head, *lines = text.split("\n")
    if DEFAULTS and head == ",".join(FIELDS):
        end = "".join(f",{default}" for default in DEFAULTS.values())
        text = "\n".join([",".join(REQUIRED), *(line.removesuffix(end) for line in lines)])
    return text


def literal(value):
    """Return a value in SQL."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def insert_sql(**expressions):
    """Return the beginning of an INSERT that names a course's columns, and the SQL of their values.

    Columns of which no expression is given get their defaults.
    """
    values = {name: literal(default) for name, default in DEFAULTS.items()} | expressions
    return f"INSERT INTO courses ({', '.join(values)})", ", ".join(values.values())


def insert(row, **others):
    """Store a course as another program could, whatever the rules of its fields."""
    values = row | others
    marks = ", ".join([database.db.param] * len(values))
    database.db.execute_sql(f"INSERT INTO courses ({', '.join(values)}) VALUES ({marks})", [*values.values()])
