"""Courses in files: CSV in and out."""

import codecs
import csv
import io
import re

import msgspec

from fields import ValidationError
from models import DEFAULTS, FIELDS, NO_LIMIT, TEXTS, join_words, split_array

# Python's encodings of text that no spreadsheet writes: some decode to surrogates, some take quadratic time.
NO_CHARSETS = {"utf-7", "punycode", "idna", "unicode-escape", "raw-unicode-escape"}
NEEDED = [field for field in FIELDS if field not in DEFAULTS]
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def decode_text(data, encoding=""):
    """Return the text of a file's bytes, decoded by its byte order mark, else as `encoding` says, else as UTF-8.

    Raises ValidationError with the line that cannot be decoded.
    """
    marked = [name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)]
    encoding = marked[0] if marked else encoding or "utf-8"
    try:
        if codecs.lookup(encoding).name in NO_CHARSETS:
            raise LookupError
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(data[: error.start + 1].splitlines())
        raise ValidationError(
            f'line {line} is not {encoding} text; save the file as "CSV UTF-8", or give its encoding: with --encoding '
            "windows-1252 to seed.py, with Content-Type: text/csv; charset=windows-1252 to the API"
        ) from None
    except (LookupError, ValueError):
        raise ValidationError(f"there is no encoding {encoding}; use one like windows-1252") from None


def read_csv(text, max_rows=NO_LIMIT):
    """Return the rows of CSV text (RFC 4180): a dict from the line that each begins on to its fields.

    Commas, semicolons or tabs separate the cells, whichever finds the columns in the first line, or what a line like
    Excel's "sep=;" declares. Blank rows are skipped. Raises ValidationError, with the line, for text that is not CSV.
    """
    rows, line = {}, 1
    declared = re.match(r"sep=(\t|[^\w\s\"])\s*?(\r\n|\r|\n)", text)
    try:
        delimiter, names = read_header(text[declared.end() :], declared[1]) if declared else read_header(text, ",;\t")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        for _ in range(2 if declared else 1):
            next(reader)
        line = reader.line_num + 1
        columns = [(field, names.index(field)) for field in FIELDS if field in names]
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows[line] = read_row(cells, columns, len(names))
            line = reader.line_num + 1
            if len(rows) > max_rows:
                raise ValidationError(f"there are more than {max_rows} rows; send them in several requests")
    except csv.Error as error:
        raise ValidationError(f"line {line} is not CSV, check its quotes: {error}") from None
    return rows


def read_row(cells, columns, width):
    """Return the fields of a row of cells, or the ValidationError of a bad one; a blank number is not given."""
    if any(cell.strip() for cell in cells[width:]):
        return ValidationError("there are more cells than columns; put quotes around a cell that has a separator")
    row = {field: cells[column] if column < len(cells) else "" for field, column in columns}
    given = {field: text for field, text in row.items() if field in TEXTS or text.strip()}
    try:
        return {field: text if field in TEXTS else FIELDS[field].parse(text) for field, text in given.items()}
    except ValidationError as error:
        return error


def read_header(text, delimiters):
    """Return the delimiter that finds the most required columns in the first record, and the names of all columns.

    Raises ValidationError if a required column is missing or named twice.
    """
    headers = {}
    for delimiter in delimiters:
        start = io.StringIO(text[:100_000], newline="")
        record = next(csv.reader(start, delimiter=delimiter, skipinitialspace=True), [])
        headers[delimiter] = [cell.strip().lower() for cell in record]
    best = max(headers, key=lambda delimiter: len({*FIELDS} & {*headers[delimiter]}))
    for field in FIELDS:
        if headers[best].count(field) > 1:
            raise ValidationError(f"the column {field} is named twice; remove one of them")
        if field in NEEDED and field not in headers[best]:
            found = " ".join(text[:200].splitlines()[:1]).strip() or "(blank)"
            columns = join_words(NEEDED, "and")
            raise ValidationError(f"the first line must name the columns {columns}, but is: {found}")
    return best, headers[best]


def make_csv(courses, progress=iter):
    """Return a JSON array of courses as CSV that read_csv takes back, in bytes."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(map(msgspec.json.decode, progress(split_array(courses))))
    return file.getvalue().encode()
