"""Files as spreadsheets and student information systems write them, read by records.read_records."""

import contextlib
import csv
import encodings.aliases
import io

import hypothesis
import pytest
from catalogue import REQUIRED
from hypothesis import strategies

from course_files import make_options, read_courses
from fields import ValidationError
from records import read_records


def read(data, encoding=""):
    """Return the code, name and instructor of each row, by its line."""
    data = data if isinstance(data, bytes) else data.encode()
    found = read_records(data, make_options({"encoding": encoding}))
    names = [name.strip().lower() for name in found.names]
    places = [names.index(name) for name in REQUIRED]
    return {line: tuple(cells[place].strip() for place in places if place < len(cells)) for line, cells in found.rows}


def refusal(data, encoding=""):
    """Return the sentence that a file gets as a whole."""
    with pytest.raises(ValidationError) as refused:
        read_courses(data if isinstance(data, bytes) else data.encode(), make_options({"encoding": encoding}))
    return str(refused.value)


SHAPES = {  # which the files of every kind below do not have
    "a row that is too short": ("code;name;instructor\nA;a\n", {2: ("A", "a")}),
    "commas in another column's name": (
        'Code;Name;Instructor;"Room, floor, house, site"\nA;a;"b;c"\n',
        {2: ("A", "a", "b;c")},
    ),
    "a sep line that the column names would not show": (
        "sep=|\ncode|name|instructor\nA|a,b|c\n",
        {3: ("A", "a,b", "c")},
    ),
}


@pytest.mark.parametrize(("text", "rows"), SHAPES.values(), ids=SHAPES)
def test_the_shapes_that_spreadsheets_write_are_read(text, rows):
    assert read(text) == rows


REFUSED = {
    "a title": ('"Course list\n2026";;\nCode;Name;Instructor\n', "", ["Course list", *REQUIRED]),
    "a column that is missing": ("code,title,instructor\nA,a,a\n", "", ["code, title, instructor", "name"]),
    "a column named twice": ("code,name,instructor,code\nA,a,a,Z\n", "", ["column code", "twice"]),
    "a column named twice in other letters": ("Code,Name,Instructor, NAME\nA,a,a,Z\n", "", ["column name", "twice"]),
    "a long line": ("x" * 100_000, "", ["x" * 40 + "…"]),
    "an empty file": ("", "", ["there are no courses in it; it is empty"]),
    "windows-1252 undeclared": (
        "code;name;instructor\nA;a;a\nB;é;b\n".encode("windows-1252"),
        "",
        ["line 3 is not UTF-8 text", "CSV UTF-8", "--encoding windows-1252", '"B;é;b" in windows-1252'],
    ),
    "another encoding than declared": ("code,name,instructor\nA,é,a\n", "ascii", ["line 2 is not ascii text"]),
    "an unknown encoding": ("code,name,instructor\n", "klingon", ["there is no encoding klingon"]),
    "an encoding that is not of text": ("code,name,instructor\n", "base64", ["there is no encoding base64"]),
    "an encoding that hides other text": ("code,name,instructor\n+2AA-", "utf_7", ["there is no encoding utf_7"]),
    "old Mac's line breaks": (b"code,name,instructor\rA,a,a\rB,\xe9,b\r", "", ["line 3 is not UTF-8 text"]),
    "UTF-16 without a BOM": ("code,name,instructor\nA,a,a\n".encode("utf-16-le"), "", []),
    "half a character of UTF-16": ("code,name,instructor\nA,a,a".encode("utf-16") + b"\0", "", ["line 2"]),
    "a quote that does not end": ('code,name,instructor\nA,a,a\nB,"b,b\nC,c,c\nD,d,d\n', "", ["line 3"]),
    "text after a quote": ('code,name,instructor\nA,"a"a,a\n', "", ["line 2"]),
}


@pytest.mark.parametrize(("data", "encoding", "fragments"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_with_what_was_found_and_where(data, encoding, fragments):
    sentence = refusal(data, encoding)
    assert [fragment for fragment in fragments if fragment.lower() not in sentence.lower()] == []
    assert "\n" not in sentence and "codec" not in sentence and len(sentence) < 400


def test_whatever_encoding_is_declared_there_are_rows_or_a_sentence():
    for encoding in {*encodings.aliases.aliases.values(), "undefined", "idna", "punycode", "a b", "é"}:
        for data in (b"code,name,instructor\nA,a,a\n", bytes(range(256)), "\ufeffcode".encode("utf-16")):
            with contextlib.suppress(ValidationError):
                reading = read_courses(data, make_options({"encoding": encoding}))
                assert str(reading.courses).encode()  # no surrogates


def test_a_course_keeps_its_fields_only_however_many_columns_there_are():
    reading = read_courses(b"a,code,,name,instructor" + b",b" * 4000 + b"\n1,A,,a,a\n2,B,,b\n", make_options({}))
    assert reading.courses == {2: {"code": "A", "name": "a", "instructor": "a"}, 3: {"code": "B", "name": "b"}}


def test_a_nul_is_refused():
    rows = b"code,name,instructor\n" + b"A,a,a\n" * 30 + b"B,b\0,b\n"
    with contextlib.suppress(ValidationError):  # by the csv module before Python 3.11, by the rule of the field after
        assert [refused.number for refused in read_courses(rows, make_options({"repeats": "first"})).invalid] == [32]


# -- Files of every kind -----------------------------------------------------------------------------------------------

ENCODINGS = [  # how the text is encoded, and what is declared
    *(("utf-8", ""), ("utf-8-sig", ""), ("utf-8-sig", "utf-8"), ("utf-16", ""), ("utf-16", "utf-16")),
    *(("windows-1252", "windows-1252"), ("latin-1", "ISO-8859-1"), ("utf-16-be", "utf-16-be")),
    *(("utf-8-sig", "windows-1252"), ("utf-16", "windows-1252")),  # a byte order mark is certain, a declaration is not
]
LATIN = strategies.text("aéß ,;\t'\"|=%", max_size=12).map(str.strip)
CODES = strategies.text('AZ 09.&,;"', min_size=1, max_size=8).map(str.strip).filter(len)
NOTES = strategies.text('aé,;\t"¶', max_size=12)  # ¶ becomes a line break
CASES = [str.lower, str.upper, str.title, lambda name: f" {name} ", lambda name: f"{name.upper()}  "]
BLANK_ROWS = strategies.sampled_from([[], [""], ["", "", ""], ["  ", "", "", "", "", "", ""]])
FILES = strategies.fixed_dictionaries(
    {
        "courses": strategies.lists(strategies.tuples(CODES, LATIN.filter(len), LATIN, NOTES), max_size=5),
        "columns": strategies.permutations([0, 1, 2, 3]),
        "case": strategies.sampled_from(CASES),
        "separator": strategies.sampled_from(",;\t"),
        "sep_line": strategies.booleans(),
        "ending": strategies.sampled_from(["\r\n", "\n", "\r"]),
        "trailing": strategies.integers(0, 2),
        "blank": strategies.lists(BLANK_ROWS, min_size=6, max_size=6),
        "quoting": strategies.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        "encoding": strategies.sampled_from(ENCODINGS),
    }
)


@hypothesis.settings(max_examples=300, derandomize=True, deadline=None)
@hypothesis.given(made=FILES)
def test_files_of_every_kind_are_read_to_the_letter(made):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=made["separator"], lineterminator=made["ending"], quoting=made["quoting"])
    if made["sep_line"]:
        file.write(f"sep={made['separator']}{made['ending']}")
    names = [made["case"](name) for name in (*REQUIRED, "note")]
    writer.writerow([names[column] for column in made["columns"]] + [""] * made["trailing"])
    expected = {}
    for course, blank in zip([*made["courses"], None], made["blank"], strict=False):
        writer.writerow(blank)
        if course:
            line = len(file.getvalue().replace("\r\n", "\n").replace("\r", "\n").split("\n"))
            expected[line] = course[:3]
            cells = [course[column].replace("¶", made["ending"]) for column in made["columns"]]
            writer.writerow(cells + [""] * made["trailing"])
    encoding, declared = made["encoding"]
    assert read(file.getvalue().encode(encoding), declared) == expected
