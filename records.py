"""The records of a file, whatever its form: CSV, JSON, NDJSON or Excel (.xlsx). Nothing here is about courses.

read_records() first finds out what kind of file its bytes are, then which text they hold, then the records: each with
its number and its cells, or its keys. What is wrong with a file as a whole raises ValidationError, with the next step.
"""

import codecs
import collections
import csv
import io
import itertools
import re
import zipfile
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from fields import ValidationError, to_nfc

CSV, JSON, NDJSON = "text/csv", "application/json", "application/x-ndjson"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
NO_LIMIT = 2**62  # rows, cells or characters


@dataclass(frozen=True)
class Options:
    """How to read a file, for the command line and for HTTP; course_files.make_options() makes it."""

    columns: dict  # the names of the columns that each field is made of
    asked: list  # the fields whose columns were asked for; the others have columns of their own name
    header: tuple = ()  # the column names of a file that has none
    sheet: str = ""  # of an .xlsx file; the first one by default
    encoding: str = ""  # of text that is not UTF-8
    repeats: str = "refuse"  # what happens to a code that stands in the file already: refuse, first or join
    max_rows: int = NO_LIMIT
    over_http: bool = False  # a request sent the file, so sentences name query parameters and headers


def fold(name):
    """Return a column's name as it is compared: in any case, whatever white space is in it."""
    return " ".join(normalize(str(name)).split()).casefold()


def list_names(names):
    """Return names for a sentence, the first 20: "A, B and 3 more"."""
    names = [printable(str(name), SHOWN) for name in names if fold(name)]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


# -- Bytes -------------------------------------------------------------------------------------------------------------

SAVE_AS = "open it in a spreadsheet and save it as CSV UTF-8 or .xlsx"
SIGNATURES = (  # the first bytes of a file, in lower case, what it is then, and what to do
    (b"%pdf", "a PDF", "get the list as CSV or .xlsx from where it was printed"),
    (b"{\\rtf", "a text document (RTF)", SAVE_AS),
    (b"\x1f\x8b", "a compressed file (gzip)", "unpack it first"),
    (b"7z\xbc\xaf", "a compressed file (7z)", "unpack it first"),
    (b"rar!", "a compressed file (rar)", "unpack it first"),
    (b"\x89png", "a picture", "get the list as CSV or .xlsx"),
    (b"\xff\xd8\xff", "a picture", "get the list as CSV or .xlsx"),
    (b"sqlite format 3\0", "a SQLite database", "use seed.py restore if it is a backup of a catalogue"),
    (b"<?xml", "an XML file", SAVE_AS),
    (b"<", "a web page", SAVE_AS),
)
ZIPPED = (  # a file inside a zip file, what that is then, and what to do; .xlsx is not here
    ("xl/workbook.bin", "a binary Excel file (.xlsb)", SAVE_AS),
    ("content.xml", "an OpenDocument file (.ods)", SAVE_AS),
    ("word/document.xml", "a Word document", "copy its table into a spreadsheet and save that as .xlsx"),
    ("Index/Document.iwa", "a Numbers file", "export it as CSV or Excel"),
    ("", "a zip file", "unpack it, and use the file inside"),
)
# Python's encodings of text that no spreadsheet writes: some decode to surrogates, some take quadratic time.
NO_CHARSETS = {"utf-7", "punycode", "idna", "unicode-escape", "raw-unicode-escape"}
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
LIKELY_ENCODINGS = ("windows-1252", "windows-1254", "windows-1250", "gb18030")
SHOWN = 40  # characters of a value that a sentence shows


def check_kind(data):
    """Return whether a file's bytes are an .xlsx file; if not, they may be text.

    Raises ValidationError for any other kind of file, with its name and the next step.
    """
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        check_zip(data)
        return True
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise ValidationError("this Excel file has a password; save it without one")
        raise ValidationError(f"this is an old Excel file (.xls); {SAVE_AS}")
    start = data[:100].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    for signature, kind, next_step in SIGNATURES:
        if start.startswith(signature):
            raise ValidationError(f"this is {kind}; {next_step}")
    return False


def check_zip(data):
    """Raise ValidationError, with the next step, for a zip file that is no .xlsx file, or is damaged."""
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        raise ValidationError("this Excel or zip file is damaged or cut short; copy or download it again") from None
    if "xl/workbook.xml" not in names:
        kind, next_step = next(step for name, *step in ZIPPED if name in names or not name)
        raise ValidationError(f"this is {kind}; {next_step}")


def decode_text(data, encoding="", over_http=False):
    """Return the text of a file's bytes, decoded by its byte order mark, else as `encoding` says, else as UTF-8.

    Raises ValidationError, which shows the line that cannot be decoded as it would read in the likely encodings.
    """
    marked = [name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)]
    name = marked[0] if marked else encoding or "utf-8"
    try:
        if codecs.lookup(name).name in NO_CHARSETS:
            raise LookupError
        text = data.decode(name)
    except UnicodeDecodeError as error:
        line = len(data[: error.start + 1].splitlines())
        kind = name.upper() if name == "utf-8" else name
        readings = show_readings(data, error.start, over_http) if not marked else "save it as CSV UTF-8"
        raise ValidationError(f"line {line} is not {kind} text; {readings}") from None
    except (LookupError, ValueError):
        raise ValidationError(f"there is no encoding {name}; use one like windows-1252") from None
    if "\0" in text[:100]:
        raise ValidationError(f"this is not {name} text; save it as CSV UTF-8, or {show_encoding('utf-16', over_http)}")
    return text


def show_encoding(encoding, over_http):
    """Return how to say which encoding a file has."""
    return f"send Content-Type: text/csv; charset={encoding}" if over_http else f"use --encoding {encoding}"


def show_readings(data, place, over_http):
    """Return what the text around a place in a file's bytes is in the likely encodings, and how to choose one."""
    start = max(data.rfind(b"\n", 0, place), data.rfind(b"\r", 0, place)) + 1
    start = max(start, place - SHOWN // 2)
    line = data[start : start + SHOWN].splitlines()[0]
    readings = collections.defaultdict(list)  # the encodings of each reading
    for encoding in LIKELY_ENCODINGS:
        try:
            data.decode(encoding)
            readings[printable(line.decode(encoding, "ignore"))].append(encoding)
        except UnicodeDecodeError:
            continue
    if not readings:
        return "save it as CSV UTF-8"
    shown = ", ".join(f'"{text}" in {" or ".join(encodings)}' for text, encodings in readings.items())
    choice = show_encoding(next(iter(readings.values()))[0], over_http)
    return f"it reads {shown}; {choice}, or whichever of them reads right, or save it as CSV UTF-8"


def printable(text, limit=NO_LIMIT):
    """Return a text on one line with nothing invisible in it, cut to `limit` characters."""
    shown = text[:limit] + ("…" if len(text) > limit else "")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def normalize(text):
    """Return a text in NFC, as names and values are compared, unless it is longer than 1,000 characters: see to_nfc."""
    return to_nfc(text, 250)


# -- Records -----------------------------------------------------------------------------------------------------------

MAX_NAMES = 16_384  # columns, or different keys, as many as a spreadsheet can have


class Records(NamedTuple):
    """A file's records: an iterable of (number, record), which is a list of cells, or a JSON object by its keys."""

    unit: str  # what the numbers count
    names: list  # of the columns
    rows: Any
    typed: bool = False  # whether values have types, as in JSON
    width: int = NO_LIMIT  # cells in a row; more are an error
    document: Any = None  # the JSON value, if it is one course


def read_records(data, options, media_type=""):
    """Return the Records of a file's bytes, of a media type, or of the kind that the bytes show."""
    is_xlsx = check_kind(data)
    if is_xlsx and media_type in ("", XLSX):
        return read_xlsx(data, options)
    if is_xlsx:
        raise ValidationError(f"this is an Excel file (.xlsx); send it with Content-Type: {XLSX}")
    if media_type == XLSX:
        raise ValidationError("this is not an Excel file (.xlsx)")
    if media_type in (JSON, NDJSON):  # always UTF-8 (RFC 8259 §8.1)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValidationError("the body is not UTF-8 text") from None
    else:
        text = decode_text(data, options.encoding, options.over_http)
    readers = {CSV: read_csv, JSON: read_json, NDJSON: read_ndjson}
    if media_type not in readers:
        media_type = find_text_type(text)
    return readers[media_type](text, options)


def find_text_type(text):
    """Return the media type that a text seems to have: NDJSON if its first line, and not its last, is an object."""
    first, _, rest = text.lstrip().partition("\n")
    if not first.startswith(("[", "{")):
        return CSV
    if first.startswith("[") or not rest.strip():
        return JSON
    try:
        msgspec.json.decode(first)
    except (msgspec.DecodeError, RecursionError):
        return JSON
    return NDJSON


def check_size(rows, options):
    """Raise ValidationError if there are more rows than allowed."""
    if rows > options.max_rows:
        raise ValidationError(f"there are more than {options.max_rows} rows; send them in several requests")


def read_csv(text, options):
    """Return the Records of CSV text (RFC 4180), each with the line on which it begins.

    Commas, semicolons or tabs separate the cells, whichever finds the columns in the first line, or what a line like
    Excel's "sep=;" declares. Raises ValidationError, with the line, for text that is not CSV; the rows do so too.
    """
    declared = re.match(r"sep=(\t|[^\w\s\"])\s*?(\r\n|\r|\n)", text)
    delimiter = declared[1] if declared else find_delimiter(text, options)
    file = io.StringIO(text, newline="")
    rows = number_rows(csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True))
    if declared:
        next(rows)
    names, rows = split_header(rows, options)
    return Records("line", names, rows, width=len(names))


def split_header(rows, options):
    """Return the names of the columns, options.header or the first of the rows, and an iterator of the other rows.

    Under options.header, a row that names the columns is left out.
    """
    if not options.header:
        _, names = next(rows, (1, []))
        if len(names) > MAX_NAMES:
            raise ValidationError(f"there are more than {MAX_NAMES} columns")
        return names, rows
    names = [fold(name) for name in options.header]

    def is_header(cells):
        return all(name in ("", fold(cell)) for name, cell in itertools.zip_longest(names, cells, fillvalue=""))

    return list(options.header), ((number, cells) for number, cells in rows if not is_header(cells))


def number_rows(reader):
    """Yield the rows of a csv.reader that are not blank, each with the line on which it begins."""
    line = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValidationError(f"line {line} is not CSV, check its quotes: {error}") from None


def find_delimiter(text, options):
    """Return the delimiter of CSV text: the one that finds most of the columns asked for, or else most columns.

    Without column names, it is the one, of those that separate anything, that comes closest to as many cells as
    options.header has.
    """
    asked = {fold(name) for names in options.columns.values() for name in names}
    scores = {}
    for delimiter in ",;\t":
        file = io.StringIO(text[:100_000].lstrip("\r\n").replace("\0", " "), newline="")
        rows = list(itertools.islice(csv.reader(file, delimiter=delimiter, skipinitialspace=True), 20))
        if options.header:
            distance = sum(abs(len(cells) - len(options.header)) for cells in rows)
            scores[delimiter] = (any(len(cells) > 1 for cells in rows), -distance)
        elif rows:
            scores[delimiter] = (len(asked & {*map(fold, rows[0])}), len(rows[0]))
    return max(scores, key=scores.get, default=",")


def read_json(text, options):
    """Return the Records of JSON text: an array of objects, or an object that holds exactly one array, or one course.

    Nothing is decoded that must have more rows than allowed, since decoding it would take hundreds of megabytes.
    """
    check_size(max(text.count("{"), text.count("[") // 2), options)
    rows = document = decode_json(text)
    if isinstance(document, dict) and isinstance(document.get("courses"), list):  # as GET /courses returns it
        rows = document["courses"]
    elif isinstance(document, dict) and not is_course(document, options):
        arrays = [key for key, value in document.items() if isinstance(value, list)]
        nested = [key for key, value in document.items() if isinstance(value, dict)]
        if len(arrays) == 1:
            rows = document[arrays[0]]
        elif arrays or nested or not options.over_http:  # over HTTP, an object without a code is a bad course
            has = f"has the arrays {list_names(arrays)}" if arrays else f"has no arrays, but {list_names(document)}"
            has = has if document else "is empty"
            raise ValidationError(
                f"the JSON must be an array of courses, or an object with exactly one array; it is an object that {has}"
            )
    if isinstance(rows, list):
        check_size(len(rows), options)
        return Records("row", find_keys(rows), enumerate(rows, 1), typed=True)
    return Records("course", find_keys([document]), [(1, document)], typed=True, document=document)


def is_course(document, options):
    """Return whether a JSON object has the first field's columns, the code, and so is not an object with an array."""
    columns = next(iter(options.columns.values()))
    return {*map(fold, columns)} <= {*map(fold, document)}


def decode_json(text, line=0):
    """Return the value of JSON text; raise ValidationError with the line of the fault, `line` if that is known."""
    if not text.strip():
        raise ValidationError("there is no JSON in it; it is empty")
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise ValidationError("the JSON is nested too deeply") from None
    except msgspec.DecodeError as error:
        message, _, place = str(error).removeprefix("JSON is malformed: ").partition(" (byte ")
        before = text.encode()[: int(place.rstrip(")"))].decode(errors="ignore") if place else text  # it is cut short
        raise ValidationError(f"line {line or before.rstrip().count(chr(10)) + 1} is not JSON: {message}") from None


def read_ndjson(text, options):
    """Return the Records of NDJSON text, a JSON object in each line that is not blank."""
    rows = []
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            rows.append((number, decode_json(line, number)))
            check_size(len(rows), options)
    return Records("line", find_keys(record for _, record in rows), rows, typed=True)


def find_keys(rows):
    """Return all keys of the rows that are JSON objects."""
    keys = {}
    for row in rows:
        if isinstance(row, dict):
            keys.update(dict.fromkeys(row))
        if len(keys) > MAX_NAMES:
            raise ValidationError(f"the JSON has more than {MAX_NAMES} different keys; each course must have the same")
    return list(keys)


def read_xlsx(data, options):
    """Return the Records of a sheet of an .xlsx file, with the cells as a person sees them."""
    import excel  # only here: few files need it

    rows = ((number, cells) for number, cells in excel.read_sheet(data, options.sheet) if any(map(str.strip, cells)))
    names, rows = split_header(rows, options)
    return Records("row", names, rows)
