"""Courses in files, read and written the same way by seed.py and by the API.

    reading = read_courses(data, make_options({"code": ["Dept", "Number"], "repeats": "join"}))
    stored = store_courses(reading, Mode.UPDATE)

records.py turns bytes into records with names. Here each record becomes a course: which columns does each field come
from, what is wrong with its value, and which course does it repeat? What is wrong with a file as a whole raises
ValidationError; what is wrong with a record goes into Reading.invalid. An option has the same name on the command line
and in a query, `--code Dept Number` and `?code=Dept&code=Number`; sentences show it as you would type it.
"""

# ruff: noqa: RUF001 (letters that look like Latin ones)

import collections
import csv
import io
import itertools
import re
import shlex
import unicodedata
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
import peewee

from database import db
from fields import Text, ValidationError
from models import FIELDS, Course, Mode, split_array
from records import NO_LIMIT, SHOWN, Options, check_size, fold, list_names, normalize, printable, read_records

REPEATS = ("refuse", "first", "join")
MANY, LARGE = 1_000, 10_000  # courses of a list, and of a catalogue: see find_comparable()
KEY = next(name for name, kind in FIELDS.items() if kind.key)
REQUIRED_IN_FILES = [name for name, kind in FIELDS.items() if kind.required_in_files]


class Refusal(NamedTuple):
    """A record that is no course: its number, and a sentence that says why; explain() adds the value."""

    number: int
    error: str
    subject: str  # such as "name", which is "too long", for the summary
    fault: str
    value: Any
    code: str


class UploadError(ValidationError):
    """An upload of which nothing was stored: `refusals` says why; `conflict` if all are repeated or taken codes."""

    def __init__(self, refusals):
        self.refusals = sorted(refusals)
        self.conflict = all(refusal.fault in ("repeated", "taken") for refusal in refusals)
        were = "row was" if len(refusals) == 1 else "rows were"
        super().__init__(f"nothing was stored; {len(refusals):,} {were} refused: {summarize(refusals)}")


@dataclass
class Reading:
    """What a file holds."""

    unit: str  # what numbers count: "line", "row", or "course" if the file is one JSON object
    names: list  # of all columns
    columns: dict  # the names of the columns that each field is made of
    document: Any  # the JSON value if the unit is "course", else None
    courses: dict = field(default_factory=dict)  # by each one's number, in order: a dict of the fields that are given
    invalid: list = field(default_factory=list)  # of Refusal
    repeated: int = 0  # records that repeat a course, and were left out or joined
    twins: list = field(default_factory=list)  # sentences about codes that look alike, from store_courses()


def make_options(given, over_http=False, max_rows=NO_LIMIT):
    """Return the Options for what a user has given: texts by the option's name, and lists of column names.

    Raises ValidationError for a bad one.
    """
    repeats = given.get("repeats") or REPEATS[0]
    if repeats not in REPEATS:
        raise ValidationError(f"repeats must be {', '.join(REPEATS[:-1])} or {REPEATS[-1]}")
    asked = [name for name in FIELDS if given.get(name)]
    columns = {name: tuple(given[name]) if name in asked else (name,) for name in FIELDS}
    try:
        header = tuple(next(csv.reader([given.get("header") or ""]), ()))
    except csv.Error:
        raise ValidationError("header must be column names on one line, separated by commas") from None
    sheet, encoding = given.get("sheet") or "", given.get("encoding") or ""
    return Options(columns, asked, header, sheet, encoding, repeats, max_rows, over_http)


def show_options(over_http, **given):
    """Return options, lists of texts or True, as you would type them: --code Dept Number, or ?code=Dept&code=Number."""
    if over_http:
        return "?" + urlencode({name: "true" if texts is True else texts for name, texts in given.items()}, True, ",")
    words = []
    for name, texts in given.items():
        words.append("--" + name.replace("_", "-"))
        words += [] if texts is True else map(quote_argument, texts)
    return " ".join(words)


def quote_argument(text):
    """Return a text as an argument of a command line, in quotes that every shell knows where they will do."""
    if re.fullmatch(r"[\w.,-]+", text):
        return text
    return shlex.quote(text) if re.search(r'["$`\\!%]', text) else f'"{text}"'


# -- Columns -----------------------------------------------------------------------------------------------------------


def find_columns(names, options):
    """Return the places of the columns of each field, and the names of the columns that are needed and missing.

    Raises ValidationError if a needed column is named twice.
    """
    places_by_name = collections.defaultdict(list)
    for place, name in enumerate(names):
        places_by_name[fold(name)].append(place)
    places, missing = {}, []
    for name, columns in options.columns.items():
        for column in columns:
            found = places_by_name.get(fold(column), ()) if fold(column) else ()
            if len(found) > 1:
                raise ValidationError(f"the column {column} is named twice; remove one of them")
            if found:
                places.setdefault(name, []).append(found[0])
            elif name in options.asked or name in REQUIRED_IN_FILES:
                missing.append(column)
    return places, missing


def explain_missing(records, missing, options):
    """Return the sentence for a file without columns that are needed: what was found, and what to type."""
    if not records.names:
        return "there are no courses in it; it is empty"
    found, kind = list_names(records.names) or "(blank)", "key" if records.typed else "column"
    likely = choose_columns(records.names, options)
    choice = show_options(options.over_http, **likely)
    first = f"the first {records.unit} must name the columns {', '.join(FIELDS)}, but is: {found}"
    number, cells = (None, []) if records.typed else find_header(records.rows, options)
    if cells:
        header = show_options(options.over_http, header=[join_header(cells)], skip_invalid=True)
        better = f"{records.unit} {number} seems to name them"
        return f"{first}; {better}: delete what stands above it, or use {header}"
    if records.typed or suggest_columns(records.names):
        choose = f"; choose them, perhaps with {choice}" if likely else ""
        lacking = " or ".join(printable(name, SHOWN) for name in missing)
        return f"there is no {kind} {lacking}; the {kind}s are {found}{choose}"
    others = [name for name in FIELDS if name not in REQUIRED_IN_FILES]
    header = show_options(options.over_http, header=[join_header([*REQUIRED_IN_FILES, "", *others])])
    no_names = f"if the file has no names, use {header}, with nothing for what you leave out"
    return f"{first}; if these are their names, choose some with {choice}; {no_names}"


def find_header(rows, options):
    """Return the number and the cells of the first row, of 20, that seems to name the columns, or None and no cells."""
    for number, cells in itertools.islice(rows, 20):
        _, missing = find_columns(cells, options)
        if not missing or {*REQUIRED_IN_FILES} <= {*suggest_columns(cells)}:
            return number, cells
    return None, []


def join_header(names):
    """Return the column names for the option `header`."""
    return ",".join(f'"{name}"' if "," in name else name.strip() for name in names)


def choose_columns(names, options):
    """Return the options that choose the columns of each field: those asked for and found, or probable ones."""
    likely, found, choice = suggest_columns(names), {*map(fold, names)}, {}
    for name, asked in options.columns.items():
        if name in options.asked and found.issuperset(map(fold, asked)):
            choice[name] = list(asked)
        elif likely.get(name) and [fold(column) for column in likely[name]] != [name]:
            choice[name] = likely[name]
        elif name in REQUIRED_IN_FILES and not likely.get(name):
            choice[name] = ["COLUMN"]
    return choice


def suggest_columns(names):
    """Return the columns that each field is probably made of, to be shown to a person."""
    words = {}  # of each column's name, such as "course code" of CourseCode and course_code
    for name in reversed(names):
        spaced = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|[\W_]+", " ", str(name))
        words[fold(spaced)] = str(name)
    likely = {}
    for name, kind in FIELDS.items():
        known = [name, *WORDS.get(name, ())]
        if kind.separator == " ":
            likely[name] = [words[word] for word in known if word in words][:1]
        else:  # a list, in any number of columns
            likely[name] = [column for word, column in words.items() if word.rstrip("0123456789 ") in known]
            likely[name].reverse()
    halves = [next((words[word] for word in WORDS[half] if word in words), "") for half in ("subject", "number")]
    if all(halves) and {*halves}.issuperset(likely[KEY]):
        likely[KEY] = halves
    return {name: columns for name, columns in likely.items() if columns}


# What columns are called in the languages that universities use. It is only ever suggested: taken for certain, it was
# wrong in 13 of 70 lists.
WORDS = {  # of each field, and of the two halves of a code
    "code": """code, course code, course id, course no, course number, course nr, module code, subject code,
        unit code, course, catalog no, kurscode, kursnummer, kurs nr, lv nr, lv nummer, modulnummer, modulcode,
        kürzel, veranstaltungsnummer, ders kodu, kod, code cours, code du cours, code ue, sigle, código,
        codigo, curso id, clave, sigla, código de la asignatura, código da disciplina, codice,
        codice insegnamento, vakcode, cursuscode, kurskod, kurskode, emnekode, fagkode, opintojakson tunnus,
        tunnus, kood, kód, kód předmětu, kod przedmiotu, kod kursu, код, код курса, шифр, κωδικός, 课程代码,
        课程号, 课程编号, 課程代碼, 科目番号, 科目コード, 과목코드, 학수번호, الرمز, رمز المقرر""",
    "name": """name, title, course name, course title, course, long title, module title, module name, subject,
        subject name, description, kursname, kurstitel, titel, bezeichnung, modulname, modultitel,
        veranstaltung, ders, ders adı, ad, adı, dersin adı, nom, titre, intitulé, nom du cours, cours, libellé,
        nombre, título, asignatura, materia, curso, nome, disciplina, nome da disciplina, insegnamento,
        denominazione, titolo, vaknaam, naam, cursusnaam, kursnamn, benämning, emnenavn, navn, nimi, nazwa,
        nazwa przedmiotu, název, název předmětu, название, наименование, дисциплина, όνομα, μάθημα, 课程名称,
        课程, 课程名, 課程名稱, 科目名, 授業科目名, 과목명, 교과목명, اسم المقرر, المقرر""",
    "instructor": """instructor, instructors, instructor name, teacher, teachers, lecturer, lecturers,
        professor, prof, faculty, staff, tutor, taught by, dozent, dozentin, dozenten, lehrperson, lehrende,
        lehrer, referent, eğitmen, öğretim elemanı, öğretim üyesi, hoca, nom prof, enseignant, enseignants,
        enseignante, professeur, intervenant, profesor, profesora, docente, docentes, docenti, professore,
        titolare, docent, lärare, foreleser, underviser, opettaja, õppejõud, prowadzący, wykładowca, vyučující,
        garant, преподаватель, καθηγητής, διδάσκων, 教师, 任课教师, 教師, 教員, 担当教員, 교수, 담당교수,
        المدرس, الأستاذ""",
    "subject": "dept, department, subject, subj, subject code, prefix, faculty, fach, bölüm, département, departamento",
    "number": "number, course number, no, nr, num, catalog number, catalog nbr, course num, nummer, numéro, número",
}
WORDS = {name: [" ".join(word.split()) for word in words.split(",")] for name, words in WORDS.items()}


# -- Courses -----------------------------------------------------------------------------------------------------------


class BadRecordError(ValidationError):
    """A record that is no course; see Refusal."""

    def __init__(self, error, subject, fault, value=None):
        super().__init__(error)
        self.reason = (error, subject, fault, value)


def read_courses(data, options, content_type=""):
    """Return the Reading of a file's bytes; `content_type` is the header of the request that sent it.

    Raises ValidationError if the file as a whole cannot be read.
    """
    media_type, _, parameters = content_type.lower().partition(";")
    charset = re.search(r"charset=[\"\s]*([^\s\";]*)", parameters)
    if charset:
        options = replace(options, encoding=charset[1])
    records = read_records(data, options, media_type.strip())
    places, missing = find_columns(records.names, options)
    is_empty_json = records.typed and not records.names
    if missing and not is_empty_json and records.unit != "course":  # one course is checked as a record
        raise ValidationError(explain_missing(records, missing, options))
    columns = {name: [records.names[place] for place in places[name]] for name in places}
    reading = Reading(records.unit, records.names, columns, records.document)
    keys = columns if records.typed else places
    plan = [(name, FIELDS[name], keys[name]) for name in keys]
    firsts = {}  # of each code, the first course's number
    for count, (number, record) in enumerate(records.rows, 1):
        check_size(count, options)
        course = {}
        try:
            check_record(record, records, options)
            read_fields(course, record, plan, records.typed)
            for name in REQUIRED_IN_FILES:
                if name not in course:
                    raise BadRecordError(f"{FIELDS[name].label or name} must be provided", name, "missing")
            first = firsts.setdefault(course[KEY], number)
            if first == number:
                reading.courses[number] = course
            else:
                merge_repeat(course, first, reading, options.repeats)
        except BadRecordError as error:
            reading.invalid.append(Refusal(number, *error.reason, course.get(KEY, "")))
    return reading


def check_record(record, records, options):
    """Raise BadRecordError for JSON that is no object, or for more cells than columns."""
    if records.typed:
        if not isinstance(record, dict):
            raise BadRecordError("a course must be an object", "row", "without fields")
    elif len(record) > records.width and any(map(str.strip, record[records.width :])):
        error = "there are more cells than columns; put quotes around a cell that has a separator"
        if options.header:
            error += f", or name every column in {'?header=' if options.over_http else '--header'}"
        raise BadRecordError(error, "row", "with too many cells")


def read_fields(course, record, plan, typed):
    """Add to a course, a dict, the fields that a record gives; raise BadRecordError for a bad one.

    `plan` has each field's name, kind and columns. A cell past the end of a row, null, and a blank number give nothing.
    """
    for name, kind, keys in plan:
        values = [record.get(key) for key in keys] if typed else [record[key] for key in keys if key < len(record)]
        value = values[0] if len(values) == 1 else join_values(values, kind.separator)
        if isinstance(value, list):
            value = join_values(value, kind.separator) if value else ""
        if value is None:
            continue
        if isinstance(value, str):
            value = normalize(value)
            if not (isinstance(kind, Text) or value.strip()):
                continue
        try:
            course[name] = kind.clean(value) if typed else kind.parse(value)
        except ValidationError as error:
            raise BadRecordError(str(error), name, find_fault(kind, value), value) from None


def join_values(values, separator):
    """Return the text that several values make, without blank ones; None if none is given, a list if one is no text."""
    values = [value for value in values if value is not None]
    if not values or not all(isinstance(value, str | int) for value in values):
        return values or None
    return separator.join(filter(None, (str(value).strip() for value in values)))


def find_fault(kind, value):
    """Return what is wrong with a field's value, in the summary's words."""
    if isinstance(value, str) and not value.strip():
        return "missing"
    if isinstance(value, str) and isinstance(kind, Text) and len(value.strip()) > kind.maximum:
        return "too long"
    return "not allowed"


def merge_repeat(course, first, reading, repeats):
    """Merge a course into the first one of its code; raise BadRecordError if it must not repeat that.

    `first` is that one's number in the reading's courses. An exact repetition always counts once.
    """
    code, old = course[KEY], reading.courses[first]
    different = [name for name in FIELDS if course.get(name) != old.get(name)]
    lists = [name for name in different if FIELDS[name].separator != " "] if repeats == "join" else []
    others = [name for name in different if name not in lists]
    if others and repeats != "first":
        error = f"Course code {code} repeats {reading.unit} {first} with another {' and '.join(others)}"
        raise BadRecordError(error, KEY, "repeated")
    for name in lists:
        join_lists(old, course, name)
    reading.repeated += 1


def join_lists(old, course, name):
    """Add the parts of a course's field to those of an older one that it repeats; raise BadRecordError if too long."""
    kind = FIELDS[name]
    parts = [*old.get(name, "").split(kind.separator), *course.get(name, "").split(kind.separator)]
    joined = kind.separator.join(dict.fromkeys(filter(None, parts)))
    try:
        old[name] = kind.clean(joined)
    except ValidationError as error:
        raise BadRecordError(str(error), name, find_fault(kind, joined), joined) from None


def explain(refusal):
    """Return why a record was refused, with its code, the value, cut, and its length where that is the fault."""
    sentence = refusal.error
    if refusal.code and refusal.subject != KEY:
        sentence = f"{refusal.code}: {sentence}"
    if refusal.value is None or (refusal.subject == KEY and refusal.fault == "missing"):
        return sentence
    if refusal.fault == "missing":
        return f"{sentence}; it is empty"
    value = printable(show_value(refusal.value), SHOWN)
    length = f" ({len(refusal.value.strip())} characters)" if refusal.fault == "too long" else ""
    return f'{sentence}: "{value}"{length}' if isinstance(refusal.value, str) else f"{sentence}: {value}"


def show_value(value):
    """Return a value of a record as text: that of other types as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def summarize(refusals):
    """Return how many records were refused, by the kind of fault: "80 names too long, 40 codes repeated"."""
    counts = collections.Counter((refusal.subject, refusal.fault) for refusal in refusals)
    parts = []
    for (subject, fault), number in counts.most_common():
        noun = subject if number == 1 or subject.endswith("s") else f"{subject}s"
        parts.append(f"{number:,} {noun} {fault}")
    return ", ".join(parts)


# -- Storing -----------------------------------------------------------------------------------------------------------


def store_courses(reading, mode=Mode.ADD, *, skip_invalid=False, **how):
    """Store what was read, as models.Course.store_courses does; return the Stored, or None as that does.

    Raises UploadError if records were refused. With `skip_invalid` the others are stored, those whose codes exist are
    refused under Mode.ADD, and Mode.REPLACE deletes no course whose record was refused. Twins and taken codes are added
    to the reading.
    """
    courses, keep = list(reading.courses.values()), [refusal.code for refusal in reading.invalid]
    codes = [course[KEY] for course in courses]
    if mode is Mode.REPLACE and not courses:
        raise ValidationError("there are no courses in it; an empty list would delete the whole catalogue")
    if reading.invalid and not skip_invalid:
        if mode is Mode.ADD:
            refuse_taken(reading, Course.find_codes(codes))
        raise UploadError(reading.invalid)
    reading.twins = find_twins(codes, find_comparable(codes, how.get("dry_run")))
    if mode is Mode.ADD and skip_invalid:
        mode = Mode.SKIP
    try:
        stored = Course.store_courses(courses, mode, keep=keep, **how)
    except peewee.IntegrityError as error:
        if mode is not Mode.ADD or not db.is_duplicate(error, "courses", KEY):
            raise
        refuse_taken(reading, Course.find_codes(codes))
        raise UploadError(reading.invalid) from None
    if stored:
        refuse_taken(reading, stored.taken)
    return stored


def refuse_taken(reading, codes):
    """Move the courses whose codes exist to the refused records."""
    taken = {*codes}
    for number, course in list(reading.courses.items()):
        code = course[KEY]
        if code in taken:
            del reading.courses[number]
            error = f"Course code {code} is in the courses already"
            reading.invalid.append(Refusal(number, error, KEY, "taken", None, code))


def find_comparable(codes, dry_run):
    """Return the existing codes to look for twins among: none for a few courses in a large catalogue.

    To look at 100,000 codes takes half a second, longer than to store a few courses. A dry run looks at all.
    """
    if dry_run or len(codes) >= MANY:
        return Course.find_codes()
    existing = Course.find_codes(limit=LARGE + 1)
    return existing if len(existing) <= LARGE else []


def find_twins(codes, existing=()):
    """Return sentences about codes that a person could take for each other, each with an earlier or existing one.

    They differ only in case, blanks, leading zeros or invisible characters, or are the same number: what a spreadsheet
    makes of a code. Codes that exist themselves are left out.
    """
    known = {*existing}
    new = [code for code in codes if code not in known]
    looks = dict(zip(look(existing), existing, strict=True)) if new else {}
    twins = ((code, looks.setdefault(alike, code)) for code, alike in zip(new, look(new), strict=True))
    return [f"{code} looks like {twin}" for code, twin in twins if twin != code]


def look(codes):
    """Return what each code looks like, the same for codes that a person could take for each other."""
    if not codes:
        return []
    text = "\n".join(code.replace("\n", " ") for code in codes)  # as one text, which is ten times as fast
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) not in ("Cf", "Mn"))
    text = re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[^\S\n]+", "", text.casefold()))
    return [repr(float(alike)) if NUMBER.fullmatch(alike) else alike for alike in text.split("\n")]


NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{1,15})?(e[+-]?\d{1,2})?", re.ASCII)


# -- Writing -----------------------------------------------------------------------------------------------------------


def make_csv(courses, progress=iter):
    """Return a JSON array of courses as CSV, in bytes. `progress` passes on the courses; it may show progress."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(FIELDS), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(map(msgspec.json.decode, progress(split_array(courses))))
    return file.getvalue().encode()


def make_xlsx(courses, progress=iter):
    """Return a JSON array of courses as an .xlsx file, in bytes, in which every cell is text.

    So no spreadsheet takes a code for a number or a date, or runs a formula.
    """
    import excel

    rows = map(msgspec.json.decode, progress(split_array(courses)))
    texts = ([str(row[name]) for name in FIELDS] for row in rows)
    return excel.write_sheet("Courses", len(FIELDS), itertools.chain([FIELDS], texts))


def make_report(data, options, reading):
    """Return the refused records of a file as CSV: `line` and `error`, then their own columns.

    It has a byte order mark, for spreadsheets, and can be corrected and imported.
    """
    file, sentences = io.StringIO(newline=""), {refusal.number: explain(refusal) for refusal in reading.invalid}
    writer = csv.writer(file)
    old = 2 if reading.names[1:2] == ["error"] else 0  # columns of an earlier report
    writer.writerow([reading.unit, "error", *reading.names[old:]])
    for number, cells in read_records(data, options).rows:
        if number in sentences:
            if isinstance(cells, dict):
                cells = [show_value(cells.get(name, "")) for name in reading.names]
            elif not isinstance(cells, list):  # JSON that is no object
                cells = [show_value(cells)]
            writer.writerow([number, sentences[number], *cells[old:]])
    return file.getvalue().encode("utf-8-sig", "replace")
