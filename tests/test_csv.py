"""Files as spreadsheets and student information systems write them, read by course_files.read_csv."""

import contextlib
import csv
import encodings.aliases
import io

import hypothesis
import pytest
from catalogue import FIELDS, NAME_RULE, REQUIRED
from hypothesis import strategies

import course_files
import models


def read(data, encoding=""):
    """Return the code, name and instructor of each row, by its line."""
    data = data if isinstance(data, bytes) else data.encode()
    rows = course_files.read_csv(course_files.decode_text(data, encoding))
    return {line: tuple(row.get(field, "").strip() for field in REQUIRED) for line, row in rows.items()}


SHAPES = {  # which the files of every kind below do not have
    "a row that is too short": ("code;name;instructor\nA;a\n", {2: ("A", "a", "")}),
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
    "a column that is missing": ("code,title,instructor\nA,a,a\n", "", ["code,title,instructor", "name"]),
    "a column named twice": ("code,name,instructor,code\nA,a,a,Z\n", "", ["column code", "twice"]),
    "a column named twice in other letters": ("Code,Name,Instructor, NAME\nA,a,a,Z\n", "", ["column name", "twice"]),
    "a long line": ("x" * 100_000, "", ["x" * 100]),
    "an empty file": ("", "", ["code", "name", "instructor"]),
    "windows-1252 undeclared": (
        "code;name;instructor\nA;a;a\nB;é;b\n".encode("windows-1252"),
        "",
        ["line 3 is not UTF-8 text", '"CSV UTF-8"', "--encoding windows-1252", "charset=windows-1252"],
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
    with pytest.raises(models.ValidationError) as refused:
        read(data, encoding)
    sentence = str(refused.value)
    assert [fragment for fragment in fragments if fragment.lower() not in sentence.lower()] == []
    assert "\n" not in sentence and "codec" not in sentence and len(sentence) < 400


def test_whatever_encoding_is_declared_there_are_rows_or_a_sentence():
    for encoding in {*encodings.aliases.aliases.values(), "undefined", "idna", "punycode", "a b", "é"}:
        for data in (b"code,name,instructor\nA,a,a\n", bytes(range(256)), "\ufeffcode".encode("utf-16")):
            with contextlib.suppress(models.ValidationError):
                text = course_files.decode_text(data, encoding)
                assert text.encode()  # no surrogates
                course_files.read_csv(text)


def test_a_row_keeps_the_fields_of_a_course_only_however_many_columns_there_are():
    rows = course_files.read_csv("a,code,,name,instructor" + ",b" * 4000 + "\n1,A,,a,a\n2,B\n")
    assert not any(row.keys() - FIELDS for row in rows.values())
    kept = {line: [row[field] for field in REQUIRED] for line, row in rows.items()}
    assert kept == {2: ["A", "a", "a"], 3: ["B", "", ""]}


def test_a_row_with_more_cells_than_columns_is_named_by_its_line():
    rows = course_files.read_csv('code,name,instructor\nB,b,b,\n\nA,a,a,b\nC,"c\nd",c\n')
    with pytest.raises(models.UploadError) as refused:
        models.Course.add_courses(rows, unit="line", dry_run=True)
    (extra, line_break) = refused.value.rows
    assert extra == (4, "there are more cells than columns; put quotes around a cell that has a separator")
    assert line_break == (5, NAME_RULE)


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
