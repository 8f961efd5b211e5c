"""What schemathesis needs to know besides openapi.yaml."""

import csv
import io
import json
import unicodedata

import schemathesis
from description import PATHS
from hypothesis import strategies

from excel import write_sheet
from records import NDJSON, XLSX

TEXT = strategies.text(
    strategies.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=20
).filter(lambda text: text.strip() and text.strip().strip("."))

(ORDER,) = (item["schema"]["enum"] for item in PATHS["/courses"]["get"]["parameters"] if item["name"] == "sort")


def make_csv(rows):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("code", "name", "instructor"), *rows])
    return file.getvalue().encode()


def make_ndjson(rows):
    objects = (dict(zip(("code", "name", "instructor"), row, strict=True)) for row in rows)
    return "".join(f"{json.dumps(one)}\n" for one in objects).encode()


def make_xlsx(rows):
    return write_sheet("Courses", 3, [("code", "name", "instructor"), *rows])


ROWS = strategies.lists(strategies.tuples(TEXT, TEXT, TEXT), min_size=1, unique_by=lambda row: row[0].strip())
schemathesis.openapi.media_type("text/csv", ROWS.map(make_csv))
schemathesis.openapi.media_type(NDJSON, ROWS.map(make_ndjson))
schemathesis.openapi.media_type(XLSX, ROWS.map(make_xlsx))


@schemathesis.hook
def before_load_schema(_context, raw_schema):
    """Remove examples, which test_openapi.py tries.

    Schemathesis takes none besides a strategy, as CSV has; and with the other password, its token writes nothing.
    """
    del raw_schema["paths"]["/password"]["put"]["requestBody"]["content"]["application/json"]["example"]
    for operation in ("post", "put"):
        content = raw_schema["paths"]["/courses"][operation]["requestBody"]["content"]
        for media_type in content.keys() - {"application/json"}:
            content[media_type].pop("example", content[media_type].pop("examples", None))


@schemathesis.hook
def filter_case(_context, case):
    """Leave out what a schema can say nothing of: blank parameters, and the lengths of texts that get shorter."""
    query = case.query or {}
    if any(map(is_long_as_sent, find_texts([query, case.body]))):
        return False
    if case.path == "/courses" and case.method in ("POST", "PUT"):  # what columns and sheets a body has, and bad rows
        options = [query.get(name, "") for name in ("code", "name", "instructor", "header", "sheet")]
        if not all(map(is_blank, options)) or str(query.get("skip_invalid")).lower() == "true":
            return False
    return not any(is_blank(value) for name, value in query.items() if name not in ("q", "instructor"))


def find_texts(value):
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from find_texts(item)


def is_long_as_sent(text):
    """Return whether a text may be too long only until it is trimmed and in NFC."""
    return len(text) > 20 and len(unicodedata.normalize("NFC", text.strip())) < len(text)


def is_blank(value):
    """Return whether a parameter counts as not given."""
    texts = value if isinstance(value, list) else [value]
    return value == {} or not "".join(map(str, texts)).strip()


@schemathesis.hook
def before_call(_context, case, _kwargs):
    """Give a cursor the order that it belongs to, of which a schema can say nothing."""
    query = case.query or {}
    order, separator, _ = str(query.get("after")).partition(":")
    if separator and order in ORDER and str(query.get("sort", "id")) in ORDER:
        case.query["sort"] = order
