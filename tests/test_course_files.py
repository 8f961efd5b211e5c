"""Courses in files: what goes in with which options, and the sentence that everything else gets."""

import csv
import datetime
import io
import json
import re
import zipfile

import hypothesis
import openpyxl
import pytest
from catalogue import REQUIRED, course
from hypothesis import strategies

import course_files
import excel
import records
from course_files import explain, make_options, read_courses, summarize
from fields import ValidationError, WholeNumber
from models import FIELDS

NAMES = list(REQUIRED)


def encode(data):
    return data if isinstance(data, bytes) else data.encode()


def read(data, content_type="", over_http=False, **options):
    """Return the Reading of a file, a text or bytes, with the options."""
    max_rows = options.pop("max_rows", 400_000)
    return read_courses(encode(data), make_options(options, over_http, max_rows), content_type)


def courses(data, **options):
    """Return the courses of a file that has no bad record, each as a tuple of what is given, by its number."""
    reading = read(data, **options)
    assert reading.invalid == []
    return {number: tuple(course.values()) for number, course in reading.courses.items()}


def errors(reading):
    """Return the number, the code and the sentence of each refused record."""
    return [(refusal.number, refusal.code, explain(refusal)) for refusal in reading.invalid]


def sentence(data, content_type="", over_http=False, **options):
    """Return the sentence that a file gets as a whole."""
    with pytest.raises(ValidationError) as refused:
        read(data, content_type, over_http, **options)
    text = str(refused.value)
    assert "\n" not in text and "codec" not in text and len(text) < 500
    return text


def make_xlsx(*rows, title="Courses"):
    """Return an .xlsx file with rows of values, which can be numbers with a format: (101, "0000")."""
    book = openpyxl.Workbook()
    book.active.title = title
    for row, values in enumerate(rows, 1):
        for column, value in enumerate(values, 1):
            cell = book.active.cell(row, column)
            cell.value, cell.number_format = value if isinstance(value, tuple) else (value, "General")
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


# -- Columns -----------------------------------------------------------------------------------------------------------

KURSE = "\ufeffKurscode;Kursname;ECTS\r\nINF-101;Grundlagen;6\r\nINF-102;Netze;5\r\n"
SPLIT = (
    "Dept,Number,Title,Instructor 1,Instructor 2\nART,110,Drawing,Ada,\nART,210,Painting,Mary,Berthe\nBIO,110,Cells,,\n"
)
SPLIT_OPTIONS = {"code": ["Dept", "Number"], "name": ["Title"], "instructor": ["Instructor 1", "Instructor 2"]}
KEYS = [
    {"course_id": "CS 10", "title": "A", "teachers": ["Grace", "Alan"]},
    {"course_id": "C", "title": "B", "teachers": []},
]
KEYS = json.dumps(KEYS)
GIVEN = {
    "columns of other names": (
        KURSE,
        {"code": ["Kurscode"], "name": ["Kursname"]},
        {2: ("INF-101", "Grundlagen"), 3: ("INF-102", "Netze")},
    ),
    "names in any case": ("CODE, Course  Name \nA,a\n", {"name": ["course name"]}, {2: ("A", "a")}),
    "a name with a line break": ('Code,"Course\nName"\nA,a\n', {"name": ["course name"]}, {3: ("A", "a")}),
    "a name in another form of Unicode": ("code,Na\u0308me\nA,a\n", {"name": ["N\u00e4me"]}, {2: ("A", "a")}),
    "several columns": (
        SPLIT,
        SPLIT_OPTIONS,
        {2: ("ART 110", "Drawing", "Ada"), 3: ("ART 210", "Painting", "Mary; Berthe"), 4: ("BIO 110", "Cells", "")},
    ),
    "one column for two fields": ("code\nA\n", {"name": ["code"]}, {2: ("A", "A")}),
    "no header": (
        "PHY 1,Mechanics,3,Isaac\nPHY 2,Optics,4,\n",
        {"header": "code,name,,instructor"},
        {1: ("PHY 1", "Mechanics", "Isaac"), 2: ("PHY 2", "Optics", "")},
    ),
    "no header, and other names": (
        "1;Algebra\n",
        {"header": "Nr,Titel", "code": ["Nr"], "name": ["Titel"]},
        {1: ("1", "Algebra")},
    ),
    "a header where none was said to be": ("Code,Name\nA,a\n", {"header": "code,name"}, {2: ("A", "a")}),
    "blank lines above the header": ("\n,,\ncode,name\nA,a\n", {}, {4: ("A", "a")}),
    "JSON's lists": (
        KEYS,
        {"code": ["course_id"], "name": ["title"], "instructor": ["teachers"]},
        {1: ("CS 10", "A", "Grace; Alan"), 2: ("C", "B", "")},
    ),
    "JSON's numbers, joined": (
        '[{"dept": "CS", "no": 10, "name": "a"}]',
        {"code": ["dept", "no"]},
        {1: ("CS 10", "a")},
    ),
    "JSON with null": ('[{"code": "A", "name": "a", "instructor": null}]', {}, {1: ("A", "a")}),
    "JSON in an object with other things": (
        '{"term": "1", "nodes": [{"code": "A", "name": "a"}], "count": 1}',
        {},
        {1: ("A", "a")},
    ),
    "one course as JSON": ('{"code": "A", "name": "a", "instructor": ["B", "C"]}', {}, {1: ("A", "a", "B; C")}),
    "NDJSON": (
        '{"code":"A","name":"a","instructor":"x"}\n\n{"code":"B","name":"b"}\n',
        {},
        {1: ("A", "a", "x"), 3: ("B", "b")},
    ),
    "nothing": ("code,name\n", {}, {}),
    "nothing in JSON": ("[]", {}, {}),
    "a row that ends early": ("code,name,instructor\nA,a\nB,b,\n", {}, {2: ("A", "a"), 3: ("B", "b", "")}),
    "a column of instructors that is missing": ("code,name\nA,a\n", {}, {2: ("A", "a")}),
    "text in another form of Unicode": ("code,name\nA,e\u0301\n", {}, {2: ("A", "\u00e9")}),
}


@pytest.mark.parametrize(("data", "options", "expected"), GIVEN.values(), ids=GIVEN)
def test_a_course_has_the_fields_that_its_columns_give(data, options, expected):
    assert courses(data, **options) == expected


def test_the_columns_used_are_told():
    assert read(SPLIT, **SPLIT_OPTIONS).columns == SPLIT_OPTIONS
    assert read("Code,NAME\n").columns == {"code": ["Code"], "name": ["NAME"]}


MISSING = {
    "German": (
        KURSE,
        {},
        ["no column code or name;", "are Kurscode, Kursname, ECTS;", "--code Kurscode --name Kursname"],
    ),
    "two columns": (SPLIT, {}, ['--code Dept Number --name Title --instructor "Instructor 1" "Instructor 2"']),
    "keys": (
        KEYS,
        {},
        [
            "no key code or name;",
            "are course_id, title, teachers;",
            "--code course_id --name title --instructor teachers",
        ],
    ),
    "Turkish": ("kod,ad,eğitmen\nA,a,b\n", {}, ["--code kod --name ad --instructor eğitmen"]),
    "Chinese": ("课程代码,课程名称,教师\nA,a,b\n", {}, ["--code 课程代码 --name 课程名称 --instructor 教师"]),
    "French": ("Intitulé,Code cours\na,A\n", {}, ['--code "Code cours" --name Intitulé']),
    "one that cannot be guessed": ("code,zzz\nA,a\n", {}, ["no column name;", "are code, zzz;", "--name COLUMN"]),
    "one that was asked for": (
        KURSE,
        {"code": ["Kurs-Nr"], "name": ["Kursname"]},
        ["no column Kurs-Nr;", "--code Kurscode --name Kursname"],
    ),
    "instructors that were asked for": ("code,name\n", {"instructor": ["x"]}, ["no column x;"]),
    "a header without": ("A,a\n", {"header": "code,title"}, ["no column name;"]),
    "no header": (
        "PHY 1,Mechanics,3,Isaac\n",
        {},
        ["must name the columns", "PHY 1, Mechanics, 3, Isaac", "--header code,name,,instructor"],
    ),
    "a title": (
        "Autumn 2026,,\n,,\ncode,name,instructor\nM2,Algebra,Ada\n",
        {},
        ["is: Autumn 2026;", "line 3 seems to name them", "--header code,name,instructor --skip-invalid"],
    ),
    "a title in German": ("Liste;\nKurscode;Kursname\n", {}, ["line 2 seems to name them"]),
    "an empty file": ("", {}, ["there are no courses in it; it is empty"]),
    "a file of blank lines": ("\n ; \n", {}, ["there are no courses in it; it is empty"]),
    "a column named twice": ("Code,name,code\nA,a,B\n", {}, ["column code is named twice"]),
    "a column that only the option names": (
        "code,name\n",
        {"name": ["x"]},
        ["no column x; the columns are code, name"],
    ),
    "a header of two lines": ("code,name\n", {"header": "code\rname"}, ["header must be column names on one line"]),
    "a key named twice": ('[{"code": "A", "Code": "B", "name": "a"}]', {}, ["column code is named twice"]),
    "a repeats of another kind": ("code,name\n", {"repeats": "last"}, ["repeats must be refuse, first or join"]),
}


@pytest.mark.parametrize(("data", "options", "fragments"), MISSING.values(), ids=MISSING)
def test_a_column_that_is_not_found_gets_what_was_found_and_what_to_type(data, options, fragments):
    text = sentence(data, **options)
    assert [fragment for fragment in fragments if fragment not in text] == []


def test_over_http_options_are_shown_as_a_query():
    assert "?code=Dept&code=Number&name=Title&instructor=Instructor+1" in sentence(SPLIT, "text/csv", over_http=True)
    assert "?header=code,name&skip_invalid=true" in sentence("Title\ncode,name\nA,a\n", "text/csv", over_http=True)


def test_what_a_title_line_is_told_to_do_works():
    reading = read(
        "Autumn 2026,,\n,,\nCode,Name,Instructor\nM2,Algebra,Ada\nTotal: 1,,\n", header="code,name,instructor"
    )
    assert list(reading.courses) == [4] and summarize(reading.invalid) == "2 names missing"


def test_a_new_field_gets_its_columns_by_itself(monkeypatch):
    credits_field = WholeNumber(0, 60, default=0)
    credits_field.name = "credits"
    monkeypatch.setitem(FIELDS, "credits", credits_field)
    rows = "code,name,credits\nA,a,6\nB,b,\nC,c\nD,d,six\n"
    reading = read(rows)
    assert [course.get("credits") for course in reading.courses.values()] == [6, None, None]
    assert errors(reading) == [(5, "D", 'D: credits must be a whole number from 0 to 60: "six"')]
    assert summarize(reading.invalid) == "1 credits not allowed"
    assert courses("code,name,ECTS\nA,a,0\n", credits=["ects"]) == {2: ("A", "a", 0)}
    assert courses('[{"code": "A", "name": "a", "credits": 3.0}, {"code": "B", "name": "b"}]')[1] == ("A", "a", 3)
    assert courses(make_xlsx(["code", "name", "credits"], ["A", "a", 6])) == {2: ("A", "a", 6)}


# -- What is wrong -----------------------------------------------------------------------------------------------------

BAD = f"""code,name,instructor,room
G 1,Geology,Mary,A1
G/2,Minerals,,B2
G 3,{"A very long title " * 8},,C3
,Fossils,Mary,D4
G 5,Oceans,,E5
G 6,"two
lines",,F6
G 7,a,b,c,d
G 8,,,
"""


def test_a_bad_record_gets_its_value_its_length_and_its_code():
    reading = read(BAD)
    assert list(reading.courses) == [2, 6]
    rule = "with no control characters"
    assert errors(reading) == [
        (3, "", 'code must be 1 to 20 characters, not only dots, with no / or control characters: "G/2"'),
        (
            4,
            "G 3",
            f'G 3: name must be 1 to 120 characters, {rule}: "{"A very long title " * 2}A ve…" (143 characters)',
        ),
        (5, "", "course code must be provided"),
        (7, "G 6", f'G 6: name must be 1 to 120 characters, {rule}: "two\\nlines"'),
        (9, "", "there are more cells than columns; put quotes around a cell that has a separator"),
        (10, "G 8", f"G 8: name must be 1 to 120 characters, {rule}; it is empty"),
    ]
    expected = "1 code not allowed, 1 name too long, 1 code missing, 1 name not allowed, 1 row with too many cells"
    assert summarize(reading.invalid) == f"{expected}, 1 name missing"


@pytest.mark.parametrize(("over_http", "option"), [(False, "--header"), (True, "?header=")])
def test_a_header_with_too_few_names_is_told_to_have_more(over_http, option):
    reading = read("PHY 1,Mechanics,3,Isaac\nPHY 2,Optics,4,\n", header="code,name", over_http=over_http)
    quotes = "there are more cells than columns; put quotes around a cell that has a separator"
    assert [error for _, _, error in errors(reading)] == [f"{quotes}, or name every column in {option}"] * 2


def test_the_summary_begins_with_the_commonest_kind():
    rows = [{"code": "A", "name": "a" * 121}] * 3 + [{"code": "A", "name": "a"}] + [{"code": "A", "name": "b"}] * 80
    assert summarize(read(json.dumps(rows)).invalid) == "80 codes repeated, 3 names too long"


def test_json_that_is_no_course_is_named_by_its_row():
    rows = [{"code": "A", "name": "a"}, {}, 5, {"code": "B", "name": 5}, {"code": "C"}, None]
    assert errors(read(json.dumps(rows))) == [
        (2, "", "course code must be provided"),
        (3, "", "a course must be an object"),
        (4, "B", "B: name must be a string: 5"),
        (5, "C", "C: Course name must be provided"),
        (6, "", "a course must be an object"),
    ]


def report(data):
    """Return the report about a file, as text."""
    return course_files.make_report(encode(data), make_options({}), read(data)).decode("utf-8-sig")


def test_a_report_can_be_corrected_and_imported():
    header, *rows = csv.reader(io.StringIO(report(BAD), newline=""))
    assert header == ["line", "error", "code", "name", "instructor", "room"]
    assert [row[0] for row in rows] == ["3", "4", "5", "7", "9", "10"]
    assert rows[0][2:] == ["G/2", "Minerals", "", "B2"] and rows[4][2:] == ["G 7", "a", "b", "c", "d"]
    corrected = report(BAD).replace("G/2", "G 2")
    assert [course["code"] for course in read(corrected).courses.values()] == ["G 2"]
    assert report(corrected).splitlines()[0] == "line,error,code,name,instructor,room"


def test_a_report_has_the_keys_of_json():
    rows = list(csv.reader(io.StringIO(report('[{"code": "A", "n": 1, "name": {"a": 5}}, 5]'))))
    assert rows[1][2:] == ["A", "1", '{"a":5}'] and rows[2] == ["2", "a course must be an object", "5"]


# -- Repeats -----------------------------------------------------------------------------------------------------------

SECTIONS = """code,name,instructor
ART 110,Drawing,Ada
ART 110,Drawing,Ada
ART 110,Drawing,Mary
BIO 200,Genetics,Gregor
BIO 200,Genetics II,Gregor
ART 110,Drawing
"""


@pytest.mark.parametrize(
    ("repeats", "instructor", "invalid"),
    [
        (
            "refuse",
            "Ada",
            [
                (4, "repeats line 2 with another instructor"),
                (6, "repeats line 5 with another name"),
                (7, "repeats line 2 with another instructor"),
            ],
        ),
        ("first", "Ada", []),
        ("join", "Ada; Mary", [(6, "repeats line 5 with another name")]),
    ],
)
def test_repeats(repeats, instructor, invalid):
    reading = read(SECTIONS, repeats=repeats)
    assert {number: course["instructor"] for number, course in reading.courses.items()} == {2: instructor, 5: "Gregor"}
    assert [(number, re.sub("Course code .{7} ", "", error)) for number, _, error in errors(reading)] == invalid
    assert reading.repeated == 5 - len(invalid) - 1
    assert summarize(reading.invalid) == (
        "" if not invalid else f"{len(invalid)} code{'s' * (len(invalid) > 1)} repeated"
    )


def test_instructors_that_become_too_long_when_joined_are_refused():
    reading = read(f"code,name,instructor\nA,a,{'b' * 80}\nA,a,c\nA,a,{'d' * 80}\n", repeats="join")
    assert [(number, error[-16:]) for number, _, error in errors(reading)] == [(4, "(165 characters)")]
    assert reading.courses[2]["instructor"] == "b" * 80 + "; c"


@pytest.mark.parametrize(
    ("code", "existing"),
    [
        ("101", "0101"),
        ("CSE115", "cse 115"),
        ("CSE\u200b115", "CSE115"),
        ("6.1", "6.100"),
        ("100000", "1E5"),
        ("49", "+49"),
        ("CSE 015", "CSE15"),
        ("CSE\u00a0115", "CSE 115"),
    ],
)
def test_twins_are_pointed_out(code, existing):
    assert course_files.find_twins([code], [existing]) == [f"{code} looks like {existing}"]
    assert course_files.find_twins([existing, code]) == [f"{code} looks like {existing}"]
    assert course_files.find_twins([code], [existing, code]) == []


def test_others_are_no_twins():
    codes = ["101", "1010", "1001", "A1", "A10", "A 1B", "6.006", "MATH&151", "", "MAR 10", "10-Mar", "9" * 400]
    assert course_files.find_twins(codes, codes) == []


# -- Bytes -------------------------------------------------------------------------------------------------------------

OLD_EXCEL = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)
XLSX = make_xlsx(["code", "name"], ["A", "a"])


def zip_with(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "")
    return file.getvalue()


KINDS = {
    "an old Excel file": (OLD_EXCEL, ["old Excel file (.xls)", "save it as CSV UTF-8 or .xlsx"]),
    "an Excel file with a password": (OLD_EXCEL + "EncryptedPackage".encode("utf-16-le"), ["has a password"]),
    "a web page": ("\n<!DOCTYPE html><html><table>", ["web page", "save it as"]),
    "XML": ('\ufeff<?xml version="1.0"?><a/>', ["an XML file"]),
    "a PDF": ("%PDF-1.7", ["PDF"]),
    "RTF": ("{\\rtf1", ["RTF"]),
    "a zip file": (zip_with("a.csv"), ["zip file", "unpack"]),
    "an empty zip file's end": (b"PK\x05\x06" + bytes(18), ["zip file"]),
    "a file of LibreOffice": (zip_with("content.xml"), [".ods"]),
    "a binary Excel file": (zip_with("xl/workbook.bin"), [".xlsb"]),
    "a cut Excel file": (XLSX[:-200], ["damaged or cut short"]),
    "gzip": (b"\x1f\x8b\x08", ["gzip"]),
    "a picture": (b"\x89PNG\r\n", ["picture"]),
    "UTF-16 without a mark": ("code,name\n".encode("utf-16-le"), ["--encoding utf-16"]),
    "JSON that is cut": ('[\n{"code": "A"},\n{"code"', ["line 3 is not JSON"]),
    "NDJSON that is cut": ('{"code": "A", "name": "a"}\n{"code": "B"\n', ["line 2 is not JSON"]),
    "JSON of two arrays": ('{"a": [], "b": []}', ["exactly one array", "has the arrays a, b"]),
    "JSON of objects by code": (
        '{"A": {"name": "a"}, "B": {"name": "b"}}',
        ["array of courses", "no arrays, but A, B"],
    ),
}


@pytest.mark.parametrize(("data", "fragments"), KINDS.values(), ids=KINDS)
def test_what_is_no_list_is_named_for_what_it_is(data, fragments):
    text = sentence(data)
    assert [fragment for fragment in fragments if fragment not in text] == []


def test_over_http_the_content_type_says_what_a_body_is():
    assert "send it with Content-Type: application/vnd" in sentence(XLSX, "text/csv", over_http=True)
    assert "not an Excel file" in sentence("code,name\n", records.XLSX, over_http=True)
    assert "line 1 is not JSON" in sentence("code,name\n", "application/json", over_http=True)
    assert (
        sentence('[{"code": "é"}]'.encode("utf-16"), "application/json", over_http=True) == "the body is not UTF-8 text"
    )
    reading = read('{"code": "A", "name": "é"}'.encode("utf-8-sig"), "application/JSON; a=b", over_http=True)
    assert reading.unit == "course" and reading.document == {"code": "A", "name": "é"}
    assert read('{"title": 1}', "application/json", over_http=True).document == {"title": 1}
    assert len(read("code,name\nA,é\n".encode("cp1252"), 'text/csv; Charset="windows-1252"').courses) == 1
    assert len(read('{"code": "A", "name": "a"}', "application/x-ndjson").courses) == 1


TURKISH = "kod,ad\nA,Şahin\n".encode("windows-1254")


def test_an_encoding_is_chosen_by_what_the_line_reads_in_the_likely_ones():
    text = sentence(TURKISH)
    assert text.startswith("line 2 is not UTF-8 text; it reads ")
    for reading in ('"A,Þahin" in windows-1252', '"A,Şahin" in windows-1254', '"A,Ţahin" in windows-1250'):
        assert reading in text
    assert "--encoding windows-125" in text and "charset=windows-125" in sentence(TURKISH, "text/csv", over_http=True)
    assert "in gb18030" in sentence("课程代码,课程名称\n".encode("gb18030"))
    assert courses(TURKISH, encoding="windows-1254", code=["kod"], name=["ad"]) == {2: ("A", "Şahin")}
    assert "there is no encoding klingon" in sentence(TURKISH, encoding="klingon")


# -- Excel files -------------------------------------------------------------------------------------------------------

CELLS = {
    "a whole number": (101, "101"),
    "a fraction": (6.1, "6.1"),
    "a sum of fractions": (0.1 + 0.2, "0.3"),
    "leading zeros": ((303, "0000"), "0303"),
    "decimals": ((6.1, "0.000"), "6.100"),
    "optional decimals": ((6.1, "0.0##"), "6.1"),
    "thousands": ((1234, "#,##0"), "1,234"),
    "text around a number": ((7, '"CS "000'), "CS 007"),
    "a colour and a negative section": ((7, "[Red]000;-000"), "007"),
    "a large number": (123456789012, "123456789012"),
    "a format that is not known": ((7, "??/??"), "7"),
    "text": (("0101", "@"), "0101"),
    "a number that looks negative": ((-7, "000"), "-7"),
    "truth": (True, "TRUE"),
    "an error": ("#N/A", "#N/A"),
    "a day": ((datetime.date(2026, 3, 10), "d-mmm"), "10-Mar"),
    "a day in ISO 8601": ((datetime.date(2026, 3, 10), "yyyy-mm-dd"), "2026-03-10"),
    "a day in German": ((datetime.date(2026, 3, 10), "dd.mm.yyyy"), "10.03.2026"),
    "a day as the locale has it": ((datetime.date(2026, 3, 10), "mm-dd-yy"), "2026-03-10"),
    "a time": ((datetime.time(9, 5), "h:mm"), "9:05"),
    "a duration": ((datetime.timedelta(hours=30, minutes=5), "[h]:mm"), "30:05"),
    "a duration with seconds": ((datetime.timedelta(hours=30, seconds=5), "[h]:mm:ss"), "30:00:05"),
}


@pytest.mark.parametrize(("value", "shown"), CELLS.values(), ids=CELLS)
def test_a_cell_is_what_a_person_sees(value, shown):
    assert courses(make_xlsx(["name", "code"], [value, "A"])) == {2: ("A", shown)}


def test_the_first_sheet_is_read_or_the_one_that_is_named():
    book = openpyxl.load_workbook(io.BytesIO(make_xlsx(["code", "name"], ["A", "a"], title="Autumn")))
    spring = book.create_sheet("Spring")
    for row in ([], ["Code", "Name", None, "note"], ["B", "b", None], [None, None, None, "n"], ["C", None, "x"]):
        spring.append(row)
    file = io.BytesIO()
    book.save(file)
    assert courses(file.getvalue()) == {2: ("A", "a")}
    reading = read(file.getvalue(), sheet=" spring")
    assert reading.courses == {3: {"code": "B", "name": "b"}}
    assert [number for number, *_ in errors(reading)] == [4, 5]
    assert sentence(file.getvalue(), sheet="x") == "there is no sheet x; the sheets are Autumn, Spring"


TRAPS = [
    "0101",
    "6.100",
    "1E5",
    "+49",
    "MAR 10",
    "1-2",
    "9" * 20,
    '=HYPERLINK("a")',
    "@SUM(1)",
    "Größte Ğ",
    " _x000D_",
    "<&>",
]


def test_what_is_written_is_text_and_reads_back_unchanged():
    rows = [course(trap.strip()[:20], trap.strip(), "") for trap in TRAPS]
    written = course_files.make_xlsx(json.dumps(rows).encode())
    assert list(read(written).courses.values()) == rows
    sheet = openpyxl.load_workbook(io.BytesIO(written)).active
    assert {(cell.data_type, cell.number_format) for row in sheet.iter_rows(max_col=2) for cell in row} <= {
        ("inlineStr", "@"),
        ("s", "@"),
    }
    assert list(read(course_files.make_csv(json.dumps(rows).encode())).courses.values()) == rows


WORKSHEET = '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">%s</worksheet>'
ROW = '<row><c t="inlineStr"><is><t>%s</t></is></c><c t="inlineStr"><is><t>%s</t></is></c></row>'
HEADER = ROW % ("code", "name")
FAR = '<row><c r="XFD1"><v>1</v></c></row>'
ENTITIES = "".join(f'<!ENTITY e{i + 1} "{"&e" + str(i) + ";"}{"&e" + str(i) + ";"}">' for i in range(30))


def with_sheet(xml):
    """Return an .xlsx file whose sheet is this XML."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(XLSX)) as old, zipfile.ZipFile(file, "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, xml if name == "xl/worksheets/sheet1.xml" else old.read(name))
    return file.getvalue()


BOMBS = {  # of which each is larger than the limits of the test, a thousandth of the real ones
    "a large sheet": (WORKSHEET % f"<sheetData>{HEADER}{' ' * 200_000}</sheetData>", "too much time or memory"),
    "a wide row": (WORKSHEET % f"<sheetData><row>{'<c/>' * 5000}</row></sheetData>", "too much time or memory"),
    "many rows": (WORKSHEET % f"<sheetData>{'<row/>' * 5000}</sheetData>", "too much time or memory"),
    "rows in a row": (WORKSHEET % f"<sheetData><row>{'<row/>' * 5000}</row></sheetData>", "too much time or memory"),
    "far cells": (WORKSHEET % f"<sheetData>{FAR * 9}</sheetData>", "too much time"),
    "tags that stay in memory": (WORKSHEET % f"<cols>{'<col/>' * 500}</cols>", "too much time or memory"),
    "a long text": (WORKSHEET % f"<sheetData>{ROW % ('x' * 140_000, '')}</sheetData>", "too much time or memory"),
    "a long tag": (WORKSHEET % f'<sheetData a="{"x" * 140_000}"></sheetData>', "too much time or memory"),
    "nested entities": (f"<!DOCTYPE a [{ENTITIES}]>{WORKSHEET % '&e9;'}", "cannot be read"),
    "no XML": ("{}", "cannot be read"),
    "XML that is cut": (WORKSHEET[:80], "cannot be read"),
    "a text that is not there": (WORKSHEET % '<sheetData><row><c t="s"><v>99</v></c></row></sheetData>', "cannot be"),
    "a number that is none": (WORKSHEET % "<sheetData><row><c><v>one</v></c></row></sheetData>", "cannot be read"),
    "a row beyond the last": (WORKSHEET % '<sheetData><row r="1e12"/></sheetData>', "cannot be read"),
    "rows out of order": (WORKSHEET % '<sheetData><row r="2"/><row r="1"/></sheetData>', "cannot be read"),
    "a column that is none": (WORKSHEET % '<sheetData><row><c r="1"><v>1</v></c></row></sheetData>', "cannot be read"),
}


@pytest.mark.parametrize(("xml", "fragment"), BOMBS.values(), ids=BOMBS)
def test_an_excel_file_that_would_take_too_much_is_refused(monkeypatch, xml, fragment):
    monkeypatch.setattr(excel, "MAX_UNPACKED", 192_000)
    monkeypatch.setattr(excel, "MAX_PARTS", 5000)
    monkeypatch.setattr(excel, "MAX_TEXT", 65_536)
    monkeypatch.setattr(excel, "MAX_KEPT", 192_000)
    assert fragment in sentence(with_sheet(xml))


def test_a_far_cell_is_a_row_like_others():
    data = with_sheet(
        WORKSHEET % f'<sheetData>{HEADER}<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
    )
    assert [number for number, *_ in errors(read(data, max_rows=2))] == [1048576]


def test_a_sheet_is_read_whole_whatever_size_it_declares():
    sheet = WORKSHEET % f'<dimension ref="A1"/><sheetData>{HEADER}{ROW % ("A", "a")}</sheetData>'
    assert courses(with_sheet(sheet)) == {2: ("A", "a")}


# -- Limits ------------------------------------------------------------------------------------------------------------

MANY = {
    "rows": ("code,name\n" + "A,a\n" * 400_001, ""),
    "arrays": ("[" + "[]," * 5_000_000 + "[]]", "application/json"),
    "objects": ("[" + "{}," * 5_000_000 + "{}]", "application/json"),
    "numbers": ("[" + "1," * 8_000_000 + "1]", "application/json"),
    "lines of JSON": ("{}\n" * 400_001, "application/x-ndjson"),
}


@pytest.mark.parametrize(("data", "content_type"), MANY.values(), ids=MANY)
def test_more_rows_than_allowed_are_refused_before_they_are_read(data, content_type):
    with pytest.raises(ValidationError, match="there are more than 400000 rows; send them in several requests"):
        read_courses(data.encode(), make_options({}, True, 400_000), content_type)


def test_as_many_rows_as_allowed_are_read():
    limited = make_options({}, max_rows=2)
    for data in ("sep=,\ncode,name\nA,a\nB,b\n", '[{"code": "A", "name": "a"}, {"code": "B", "name": "b"}]'):
        assert len(read_courses(data.encode(), limited).courses) == 2
    assert len(read_courses(make_xlsx(["code", "name"], ["A", "a"], ["B", "b"]), limited).courses) == 2
    assert len(read_courses(b'{"code": "A", "name": "a"}\n{"code": "B", "name": "b"}\n', limited).courses) == 2


@pytest.mark.parametrize("data", ["code,name" + "," * 20_000, json.dumps([dict.fromkeys(range(20_000))])])
def test_columns_beyond_those_of_a_spreadsheet_are_refused(data):
    assert "more than 16384" in sentence(data)


def test_accents_without_end_take_no_time():
    reading = read("code,name\n" + "A," + "\u0301\u0316" * 60_000 + "\n")
    assert summarize(reading.invalid) == "1 name too long"


# -- The same list in four forms ---------------------------------------------------------------------------------------

CODES = strategies.sampled_from(["A", "B", "C 1", "C", "1", "0101", "ş", "d/e", "", "A" * 21])
TEXTS = strategies.sampled_from(["", "a", "é, ş", "a;b", '"q"', "=1+1", " b ", "x" * 121, "A", "e\u0301"])
LISTS = strategies.fixed_dictionaries(
    {
        "widths": strategies.tuples(strategies.integers(1, 2), strategies.integers(1, 2), strategies.integers(0, 2)),
        "rows": strategies.lists(
            strategies.tuples(CODES, CODES, TEXTS, TEXTS, TEXTS, TEXTS, strategies.integers(0, 3)), max_size=6
        ),
        "again": strategies.lists(strategies.integers(0, 5), max_size=3),
        "blank": strategies.sets(strategies.integers(0, 8), max_size=3),
        "separator": strategies.sampled_from(",;\t"),
        "encoding": strategies.sampled_from(
            [("utf-8", ""), ("utf-8-sig", ""), ("utf-16", ""), ("windows-1254", "windows-1254")]
        ),
        "repeats": strategies.sampled_from(course_files.REPEATS),
        "header": strategies.booleans(),
    }
)


def write_csv(names, rows, made):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=made["separator"])
    if names:
        writer.writerow(names)
    else:
        file.write(f"sep={made['separator']}\r\n")  # of short rows alone, nobody could tell
    for place, row in enumerate(rows):
        writer.writerow(row)
        if place in made["blank"]:
            writer.writerow([""] * len(row))
    encoding, declared = made["encoding"]
    text = file.getvalue()
    return (text.replace("e\u0301", "é") if declared else text).encode(encoding)


def outcome(data, options):
    """Return what a file comes to, without the numbers of its rows."""
    reading = read_courses(data, make_options(options))
    invalid = [(refusal.code, re.sub(r"(line|row) \d+", "N", explain(refusal))) for refusal in reading.invalid]
    return list(reading.courses.values()), invalid, reading.repeated


@hypothesis.settings(max_examples=200, derandomize=True, deadline=None)
@hypothesis.given(made=LISTS)
def test_four_forms_of_one_list_give_the_same_courses(made):
    groups = dict(zip(NAMES, made["widths"], strict=True))
    options = {name: [f"{name} {i}" for i in range(width)] for name, width in groups.items()}
    names = [name for columns in options.values() for name in columns]
    rows = []
    for dept, number, name, more, instructor, other, cut in made["rows"]:
        parts = {"code": (dept, number), "name": (name, more), "instructor": (instructor, other)}
        row = [part for field, width in groups.items() for part in parts[field][:width]]
        rows.append(row[: max(1, len(row) - cut)])
    rows = [row for row in rows + [rows[i] for i in made["again"] if i < len(rows)] if any(map(str.strip, row))]
    given = {"repeats": made["repeats"], **options}
    objects = [dict(zip(names, row, strict=False)) for row in rows]
    headed = {"header": ",".join(names)} if made["header"] and rows else {}
    expected = outcome(write_csv(names, rows, made), given | {"encoding": made["encoding"][1]})
    assert (
        outcome(write_csv(None, rows, made), given | {"header": ",".join(names), "encoding": made["encoding"][1]})
        == expected
    )
    assert outcome(excel.write_sheet("A", 1, rows if headed else [names, *rows]), given | headed) == expected
    if {*names} <= {key for row in objects for key in row}:  # else they are missing
        assert outcome(json.dumps(objects).encode(), given) == expected
        if len(objects) > 1:
            assert outcome("\n".join(map(json.dumps, objects)).encode(), given) == expected
