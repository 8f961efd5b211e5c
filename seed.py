"""Fill the database that DATABASE_URL names (sqlite:///courses.db), and copy courses in and out of it."""

import argparse
import contextlib
import getpass
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from urllib.parse import quote

import peewee

import course_files
import models
from database import SQLite, db, describe, exit_if_unusable, init_db
from models import FIELDS, ApiKey, Course, Mode, User, join_words

SUBJECTS = ("ART", "BIO", "CHEM", "CSE", "ECON", "GEOG", "HIST", "LAW", "MATH", "MUS", "PHIL", "PHYS")
KINDS = ("Introduction to", "Foundations of", "Methods of", "Topics in", "Seminar in", "Advanced", "History of")
TOPICS = ("Algebra", "Climate", "Data Structures", "Democracy", "Evolution", "Genetics", "Jazz", "Justice", "Markets")
PEOPLE = ("Bose, Satyendra", "Curie, Marie", "Gödel, Kurt", "Hopper, Grace", "Lovelace, Ada", "Meitner, Lise", "Wu")
MAX_DAYS = 36500  # of a key with an end


def progress(courses):
    """Pass on courses, and show progress at a terminal."""
    from tqdm import tqdm  # only here, since most commands need none

    return tqdm(courses, unit=" courses", leave=False, disable=None)


def ignore_ctrl_c():
    """Ignore Ctrl-C from now on, so that it never hides a commit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def count(number, noun):
    """Return a number with its noun: "1 course", "2 courses"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def add_dummy_data():
    """Add the dummy courses and the dummy user that are missing; return a sentence."""
    return f"Added: {', '.join(models.add_dummy_data()) or 'nothing, the dummy data is already there'}"


# -- Users -------------------------------------------------------------------------------------------------------------


def list_users():
    """Return a line for each user, with the role."""
    lines = [f"{user.username}\t{'read-only' if user.read_only else 'editor'}" for user in User.get_all_users()]
    return "\n".join(lines or ["There are no users."])


def read_password(username):
    """Return a new password: asked for twice at a terminal, else a line of standard input; raise ValueError."""
    if sys.stdin.isatty():
        password = getpass.getpass(f"Password for {username}: ")
        if getpass.getpass("Repeat the password: ") != password:
            raise ValueError("the passwords differ; nothing was changed")
    else:
        try:
            password = sys.stdin.buffer.readline().decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            raise ValueError("the password on standard input is not UTF-8 text; nothing was changed") from None
    if len(password) < models.MIN_PASSWORD:
        raise ValueError(f"the password must be {models.MIN_PASSWORD} characters or more; nothing was changed")
    return password


def set_user(name, read_only, delete):
    """Add a user, change the password or the role, or delete the user; return a sentence."""
    name = User.username.clean(name)
    user = User.get_or_none(User.username == name)
    if delete:
        if not (user and user.delete_instance()):
            raise ValueError(f"there is no user {name}; list them with: python seed.py users")
        return f"Deleted user {name}."
    if not user:
        User.create_user(name, read_password(name), bool(read_only))
        return f"Added user {name}."
    if read_only is None:
        if not user.set_password(read_password(name)):
            raise ValueError(f"somebody else has just changed the password of user {name}; nothing was changed")
        return f"Changed the password of user {name}."
    user.read_only = read_only
    user.save(only=["read_only"])
    return f"User {name} may now {'only read' if read_only else 'read and write'}."


# -- Keys for scripts --------------------------------------------------------------------------------------------------


def list_keys():
    """Return a line for each key: its user, label, role and dates."""
    keys = ApiKey.select(ApiKey, User).join(User).order_by(User.username, ApiKey.label)
    return "\n".join([describe_key(key) for key in keys] or ["There are no keys."])


def describe_key(key):
    """Return a line for a key; the key itself is not known."""
    role = "read-only" if key.read_only or key.user.read_only else "editor"
    end = "never expires" if key.expires is None else f"expires {day(key.expires)}"
    return f"{key.user.username}\t{key.label}\t{role}\tcreated {day(key.created)}\t{end}"


def day(seconds):
    """Return the day of a Unix time, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def set_key(name, label, days, read_only, delete):
    """Print a new key of a user, or delete one; return a sentence."""
    name, label = User.username.clean(name), ApiKey.label.clean(label)
    user = User.get_or_none(User.username == name)
    if not user:
        raise ValueError(f"there is no user {name}; list them with: python seed.py users")
    if days and days > MAX_DAYS:
        raise ValueError(f"a key is good for {MAX_DAYS} days at most, or, without --days, until it is deleted")
    if delete:
        if not ApiKey.delete().where(ApiKey.user == user, ApiKey.label == label).execute():
            raise ValueError(f"user {name} has no key {label}")
        return f"Deleted key {label} of user {name}."
    try:
        print(ApiKey.create_key(user, label, days and days * 86400, read_only))
    except peewee.IntegrityError:
        raise ValueError(f"user {name} has a key {label} already; delete it first, or choose another label") from None
    return f"Added key {label} of user {name}. It is not shown again."


# -- Courses -----------------------------------------------------------------------------------------------------------


def import_courses(file, update, replace, yes, skip_invalid, report, dry_run, verbose, **given):
    """Store the courses of a file, all or none; return sentences that say what was done."""
    mode = Mode.REPLACE if replace else Mode.UPDATE if update else Mode.ADD
    how = {"skip_invalid": skip_invalid, "dry_run": dry_run, "verbose": verbose}
    try:
        data, options = read_file(file), course_files.make_options(given)
        reading = course_files.read_courses(data, options)
        if replace and not dry_run:
            how["old"] = confirm_deletion(reading, yes, skip_invalid)
        stored = course_files.store_courses(reading, mode, progress=progress, before_commit=ignore_ctrl_c, **how)
    except course_files.UploadError as error:
        print(error, file=sys.stderr)
        print_refusals(reading)
        write_report(report, data, options, reading)
        raise ValueError(f"nothing was stored; {suggest(reading, options)}") from None
    except KeyboardInterrupt:
        raise ValueError("interrupted; nothing was stored") from None
    if not stored:
        raise ValueError("somebody else has changed the courses meanwhile; nothing was stored, run it again")
    print_refusals(reading)
    write_report(report, data, options, reading)
    return describe_import(reading, stored, dry_run)


def read_file(path):
    """Return the bytes of a file, or of standard input for "-"; raise ValueError if there is none."""
    try:
        return sys.stdin.buffer.read() if path == "-" else pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


def confirm_deletion(reading, yes, skip_invalid):
    """Ask before more than a tenth of the courses are deleted, unless `yes`; return the list asked about, as JSON.

    Raises ValueError for another answer than yes, or if there is no terminal to ask at.
    """
    if yes:
        return None
    _, old, _ = Course.get_page()
    stored = course_files.store_courses(reading, Mode.REPLACE, skip_invalid=skip_invalid, dry_run=True)
    total = stored.updated + stored.unchanged + stored.deleted
    if stored.deleted * 10 > total:
        warning = f"This deletes {stored.deleted:,} of {count(total, 'course')}"
        if not sys.stdin.isatty():
            raise ValueError(f"{warning}; nothing was stored. Add --yes to do it, or --dry-run --verbose to see which")
        if input(f"{warning}. Continue? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ValueError("nothing was stored")
    return old


def print_refusals(reading):
    """Print the refused records of a file, each with its number."""
    for refusal in sorted(reading.invalid):
        print(f"{reading.unit} {refusal.number}: {course_files.explain(refusal)}", file=sys.stderr)


def suggest(reading, options):
    """Return what to do about the refused records of a file."""
    faults, steps = {refusal.fault for refusal in reading.invalid}, []
    if "repeated" in faults and options.repeats == "refuse":
        steps.append("--repeats first (or join) to make one course of each code")
    if "taken" in faults:
        steps.append("--update to change the courses that exist")
    steps.append("--skip-invalid to leave these rows out, with --report bad.csv to correct them later")
    return f"correct the file, or add {join_words(steps, 'or')}"


def write_report(path, data, options, reading):
    """Write the refused records to a CSV file, if one is named."""
    if path:
        pathlib.Path(path).write_bytes(course_files.make_report(data, options, reading))
        print(f"Wrote {count(len(reading.invalid), 'refused row')} to {path}.", file=sys.stderr)


def describe_import(reading, stored, dry_run):
    """Return sentences that say what an import did, or would do."""
    parts = [f"{'Would add' if dry_run else 'Added'} {count(stored.created, 'course')}"]
    if stored.updated:
        parts.append(f"{'update' if dry_run else 'updated'} {stored.updated:,}")
    if stored.deleted:
        parts.append(f"{'delete' if dry_run else 'deleted'} {stored.deleted:,}")
    if stored.unchanged:
        parts.append(f"{stored.unchanged:,} unchanged")
    lines = [", ".join(parts) + ("; nothing was stored." if dry_run else ".")]
    if reading.repeated:
        lines.append(f"{count(reading.repeated, reading.unit)} repeated an earlier code, and counted once.")
    if reading.invalid:
        refused = f"Left out {count(len(reading.invalid), reading.unit)}"
        lines.append(f"{refused}: {course_files.summarize(reading.invalid)}.")
    if dry_run:
        columns = (f"{field} from {' and '.join(map(str.strip, names))}" for field, names in reading.columns.items())
        lines.append(f"Columns: {', '.join(columns)}.")
        lines += [f"  {' | '.join(map(str, course.values()))}" for course in list(reading.courses.values())[:3]]
    lines += [describe_change(*change) for change in stored.changes or ()]
    return "\n".join(lines + [f"Check the code: {twin}." for twin in reading.twins])


def describe_change(before, after):
    """Return a line about a course that was added (+), changed (~) or deleted (-)."""
    if not (before and after):
        course = after or before
        return f"{'+' if after else '-'} {' | '.join(str(course[name]) for name in FIELDS)}"
    changes = (f"{name} {before[name]!r} -> {after[name]!r}" for name in FIELDS if before[name] != after[name])
    return f"~ {after['code']}: {', '.join(changes)}"


def export_courses(file, encoding):
    """Write every course to a file; return a sentence."""
    ending = pathlib.Path(file).suffix.lower()
    if ending not in ((".json", ".csv", ".xlsx") if file != "-" else ("",)):
        raise ValueError(f"cannot tell the format of {file}; end its name in .csv, .json or .xlsx")
    total, courses, _ = Course.get_page()
    if ending == ".xlsx":
        pathlib.Path(file).write_bytes(course_files.make_xlsx(courses, progress))
        return f"Wrote {count(total, 'course')} to {file}."
    content = courses if ending == ".json" else course_files.make_csv(courses, progress)
    try:
        content = content.decode().encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        raise ValueError(f"the courses cannot be written in {encoding}; use utf-8-sig or utf-16") from None
    if file == "-":
        sys.stdout.buffer.write(content)
        return f"Wrote {count(total, 'course')} to standard output."
    pathlib.Path(file).write_bytes(content)
    return f"Wrote {count(total, 'course')} to {file}."


def add_random_courses(number, seed):
    """Add made-up courses with free codes, the same ones for the same seed; return a sentence."""
    rng = random.Random(seed)  # noqa: S311 (nothing secret)
    taken = {code for (code,) in Course.select(Course.code).tuples()}
    courses = {}
    while len(courses) < number:
        code = f"{rng.choice(SUBJECTS)} {rng.randrange(100, 1100 + number + len(taken))}"
        name = f"{rng.choice(KINDS)} {rng.choice(TOPICS)}"
        if code not in taken:
            courses[code] = {"code": code, "name": name, "instructor": rng.choice(PEOPLE)}
    stored = Course.store_courses(list(courses.values()), progress=progress)
    return f"Added {count(stored.created, 'course')}."


# -- Backups -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def copy_in(folder):
    """Open a new SQLite database in a folder below this one, which is removed after the block."""
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="course-api-", ignore_cleanup_errors=True) as inner,
        contextlib.closing(SQLite(f"{inner}/copy.db")) as copy,
    ):
        yield copy


def open_backup(file, folder):
    """Return a connection to a backup, or to a copy in this folder if nothing can be written beside the backup.

    SQLite writes there to read a file with a write-ahead log.
    """
    if os.path.exists(file) and not os.access(os.path.dirname(os.path.realpath(file)), os.W_OK):
        for ending in ("", "-wal"):
            if os.path.exists(file + ending):
                shutil.copyfile(file + ending, f"{folder}/backup.db{ending}")
        file = f"{folder}/backup.db"
    return sqlite3.connect(f"file:{quote(file)}?mode=rw", uri=True)


def backup(file):
    """Copy the SQLite database to a new file, even while it is in use; return a sentence."""
    if not os.path.exists(db.database):
        raise ValueError(f"there is no database {db.label}")
    if os.path.lexists(file):
        raise ValueError(f"{file} already exists; nothing was written")
    try:
        with copy_in(os.path.dirname(os.path.abspath(file))) as copy:
            db.connection().backup(copy.connection())
            copy.execute_sql("PRAGMA journal_mode = DELETE")  # so that it can be read where nothing can be written
            copy.close()
            os.replace(copy.database, file)
    except (OSError, sqlite3.Error, peewee.PeeweeException) as error:
        raise ValueError(f"cannot write {file}: {describe(error)}") from None
    return f"Copied the database to {file}."


def restore(file):
    """Replace everything in the SQLite database by a backup, even while it is in use; return a sentence.

    The backup is checked, and brought up to date if it is of an older version, in a copy next to the database.
    """
    page_size = db.pragma("page_size")
    with copy_in(os.path.dirname(os.path.realpath(db.database))) as copy:
        try:
            with contextlib.closing(open_backup(file, os.path.dirname(copy.database))) as source:
                source.backup(copy.connection())
            if copy.pragma("integrity_check") != "ok" or not {"courses", "users"} <= set(copy.get_tables()):
                raise peewee.DatabaseError("it is damaged, or no backup of a catalogue")
            init_db(copy)
        except (OSError, sqlite3.Error, peewee.PeeweeException) as error:
            raise ValueError(f"cannot restore {file}: {describe(error)}; nothing was changed") from None
        for statement in ("PRAGMA journal_mode = DELETE", f"PRAGMA page_size = {page_size}", "VACUUM"):
            copy.execute_sql(statement)
        copy.connection().backup(db.connection())
    return f"Restored the database from {file}."


# -- The command line --------------------------------------------------------------------------------------------------


def positive_number(text):
    """Return a whole number, 1 or more; raise argparse.ArgumentTypeError for any other text."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number, 1 or more")
    return int(text)


def add_import_options(importer):
    """Add the options that `import` has; the query parameters of POST and PUT /courses have the same names."""
    importer.usage = "%(prog)s FILE [OPTION ...]"  # behind the names of columns, the file would be one of them
    importer.add_argument("file", metavar="FILE", help="a CSV, JSON, NDJSON or .xlsx file, or - for standard input")
    for name in FIELDS:
        text = f"the columns that make up the {name}, if they have other names"
        importer.add_argument(f"--{name}", nargs="+", metavar="COLUMN", help=text)
    importer.add_argument("--header", metavar="NAMES", help="column names, if the file has none: code,name,,instructor")
    importer.add_argument("--sheet", metavar="TITLE", help="the sheet of an Excel file (the first one)")
    importer.add_argument(
        "--repeats", choices=course_files.REPEATS, help="what to do with a code that repeats (refuse)"
    )
    importer.add_argument("--update", action="store_true", help="change the courses that exist")
    importer.add_argument("--replace", action="store_true", help="also delete the courses that are not in the file")
    importer.add_argument("--yes", action="store_true", help="do not ask before many courses are deleted")
    importer.add_argument("--skip-invalid", action="store_true", help="store the good rows, and leave out the others")
    importer.add_argument("--report", metavar="FILE", help="write the refused rows to a CSV file, to be corrected")
    importer.add_argument("--dry-run", action="store_true", help="check the file, and store nothing")
    importer.add_argument("--verbose", action="store_true", help="print each course that is added, changed or deleted")


def parse_arguments():
    """Return the command line's function, and its other arguments."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="Without a command: add the dummy courses and user.")
    parser.set_defaults(function=add_dummy_data)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name, function, text):
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(function=function)
        return added

    command("users", list_users, "list the users and their roles")
    user = command("user", set_user, "add a user, or change the password; it is asked for, or read from standard input")
    user.add_argument("name", metavar="NAME", help="the user's name")
    change = user.add_mutually_exclusive_group()
    change.add_argument(
        "--read-only", action=argparse.BooleanOptionalAction, help="set the role, and keep the password"
    )
    change.add_argument("--delete", action="store_true", help="delete the user")
    command("keys", list_keys, "list the keys of all users")
    key = command("key", set_key, "add a key with which a script acts as a user; it is printed once")
    key.add_argument("name", metavar="USER")
    key.add_argument("label", metavar="LABEL", help="what the key is for")
    key.add_argument("--days", type=positive_number, help="how long the key is good; without it, until it is deleted")
    key.add_argument("--read-only", action="store_true", help="the key may only read")
    key.add_argument("--delete", action="store_true", help="delete the key")
    importer = command("import", import_courses, "add the courses of a CSV, JSON or Excel file, all or none")
    add_import_options(importer)
    exporter = command("export", export_courses, "write every course to a CSV, JSON or Excel file")
    exporter.add_argument(
        "file", metavar="FILE", help="a name in .csv, .json or .xlsx, or - for CSV on standard output"
    )
    for one in (importer, exporter):
        one.add_argument("--encoding", default="", help="of CSV, such as windows-1252, or utf-8-sig for Excel (UTF-8)")
    saver = command("backup", backup, "copy the SQLite database to a new file, even while it is in use")
    saver.add_argument("file", metavar="FILE", help="a name that does not exist yet")
    restorer = command("restore", restore, "replace the SQLite database by a backup, even while it is in use")
    restorer.add_argument("file", metavar="FILE", help="what backup has written")
    randomizer = command("random", add_random_courses, "add made-up courses")
    randomizer.add_argument("number", metavar="N", type=positive_number, help="how many")
    randomizer.add_argument("--seed", type=int, default=1, help="other courses for another number (1)")
    arguments = vars(parser.parse_args())
    return arguments.pop("function"), arguments


def main():
    """Do what the command line says."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that the console lacks must not hide what was done
    function, arguments = parse_arguments()
    out = sys.stderr if function in (export_courses, set_key) else sys.stdout  # whose output is a file, or the key
    try:
        if function in (backup, restore) and (db.pooled or db.in_memory):
            tools = "pg_dump or mariadb-dump, and pg_restore or mariadb"
            raise ValueError(f"{db.label} is not a SQLite file; copy a server's database with {tools}")
        if function is not backup:  # which creates nothing, not even a table
            with exit_if_unusable():
                init_db()
        print(function(**arguments), file=out)
        courses, users = Course.select().count(), User.select().count()
        print(f"{db.label} now has {count(courses, 'course')} and {count(users, 'user')}", file=out)
    except ValueError as error:
        sys.exit(str(error))
    except (OSError, sqlite3.Error, peewee.PeeweeException) as error:
        file = getattr(error, "filename", None)
        sys.exit(f"{file}: {describe(error)}" if file else describe(error))
    except (KeyboardInterrupt, EOFError):
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
