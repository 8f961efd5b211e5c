"""Excel files (.xlsx): the rows of a sheet in, as a person sees them, and rows of text out.

openpyxl reads them. An .xlsx file is a zip archive of XML, of which a megabyte can unpack to a gigabyte, or hold a row
of a hundred million cells, so a pass of expat goes over each part first, to know that it is safe to read. This module
is imported only where it is needed, since few processes need openpyxl.
"""

import contextlib
import datetime
import html
import io
import re
import sys
import warnings
import zipfile
from xml.parsers import expat

from openpyxl.cell.text import Text
from openpyxl.reader.excel import ExcelReader, apply_stylesheet
from openpyxl.styles import is_date_format
from openpyxl.utils.cell import coordinate_to_tuple
from openpyxl.utils.escape import unescape
from openpyxl.xml.constants import SHARED_STRINGS
from openpyxl.xml.functions import iterparse

from fields import ValidationError

MAX_UNPACKED = 192 * 2**20  # bytes of the XML that is read
MAX_PARTS = 5_000_000  # tags and attributes of this XML, and cells that rows skip: 100,000 courses have three million
MAX_KEPT = 192 * 2**20  # bytes that stay in memory, by estimate: what openpyxl makes of tags, and texts
MAX_TEXT = 2**20  # bytes between two tags, or in one
MAX_ROWS = 1_048_576  # of any sheet
SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
ROW, CELL, SHARED_TEXT = (f"{SHEET}}}{name}" for name in ("row", "c", "si"))  # tags, as expat has them
UNREADABLE = "this Excel file cannot be read; open it in a spreadsheet and save it again, or as CSV UTF-8"
TOO_LARGE = "this Excel file takes too much time or memory to read; save the list alone as CSV UTF-8"


def read_sheet(data, title=""):
    """Yield the rows of a sheet, the first visible one by default: the number of each, and its texts.

    A row ends with its last cell that has a value. Raises ValidationError for what cannot be read, also later on.
    """
    try:
        for number, cells in enumerate(open_sheet(data, title).iter_rows(), 1):
            width = max((place for place, cell in enumerate(cells, 1) if cell.value is not None), default=0)
            if width:
                yield number, [show_cell(cell) for cell in cells[:width]]
    except ValidationError:
        raise
    except Exception:  # noqa: BLE001 (whatever openpyxl runs into in a damaged file)
        raise ValidationError(UNREADABLE) from None


def open_sheet(data, title):
    """Return openpyxl's sheet with this title, or the first visible one.

    These are the steps of load_workbook() that the cells need. It would also read all other sheets.
    """
    warnings.filterwarnings("ignore", module="openpyxl")  # about what it leaves out, such as drawings
    file = io.BytesIO(data)
    reader = ExcelReader(file, read_only=True, data_only=True, keep_links=False)
    reader.archive = CheckedArchive(file)
    reader.read_manifest()
    reader.shared_strings = list(read_texts(reader))
    reader.archive.cleared = ROW
    reader.read_workbook()
    apply_stylesheet(reader.archive, reader.wb)
    sheets = [sheet for sheet, relation in reader.parser.find_sheets() if relation.Type.endswith("/worksheet")]
    reader.parser.sheets = [choose_sheet(sheets, title)]
    reader.read_worksheets()
    (sheet,) = reader.wb.worksheets
    sheet.reset_dimensions()  # which some programs write wrong
    return sheet


def read_texts(reader):
    """Yield the texts that cells share, with their escapes, of which openpyxl's own read_strings() loses some."""
    part = reader.package.find(SHARED_STRINGS)
    if part is not None:
        reader.archive.cleared = SHARED_TEXT
        with reader.archive.open(part.PartName[1:]) as file:
            for _, element in iterparse(file):
                if element.tag == f"{{{SHARED_TEXT}":
                    yield Text.from_tree(element).content
                    element.clear()


def choose_sheet(sheets, title):
    """Return the sheet with this title, or the first visible one."""
    if not sheets:
        raise ValidationError("this Excel file has no sheets")
    if not title:
        return min(sheets, key=lambda sheet: sheet.state in ("hidden", "veryHidden"))
    for sheet in sheets:
        if sheet.name.strip().casefold() == title.strip().casefold():
            return sheet
    titles = ", ".join(sheet.name.strip() for sheet in sheets)
    raise ValidationError(f"there is no sheet {title}; the sheets are {titles}")


class CheckedArchive(zipfile.ZipFile):
    """The archive of an .xlsx file; each part is checked when it is first opened.

    Raises ValidationError for a part that takes too much time or memory, or can define entities. XML that is cut
    passes: its reader stops at the same place.
    """

    cleared = ""  # the tag after whose end openpyxl forgets what is in the element

    def __init__(self, file):
        super().__init__(file)
        self.checked, self.unpacked, self.cost = set(), 0, Cost()

    def open(self, name, *_, **__):
        if (name, self.cleared) not in self.checked:
            self.checked.add((name, self.cleared))
            self.check(name)
        return super().open(name)

    def check(self, name):
        """Read a part, and keep nothing of it."""
        self.unpacked += self.getinfo(name).file_size
        check_limit(self.unpacked, MAX_UNPACKED)
        self.cost.begin_part(self.cleared)
        parser = expat.ParserCreate(namespace_separator="}")
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = self.cost.begin_element, self.cost.end_element
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = self.cost.add_text, refuse_doctype
        length, chunk = 0, b" "
        with super().open(name) as file, contextlib.suppress(expat.ExpatError):
            while chunk:
                chunk = file.read(65536)
                parser.Parse(chunk, not chunk)
                length += len(chunk)
                check_limit(length - parser.CurrentByteIndex, MAX_TEXT)


class Cost:
    """What openpyxl will need to read XML, as expat reports that; raises ValidationError when it is too much."""

    parts = 0  # see MAX_PARTS

    def begin_part(self, cleared):
        """Begin with a part of an archive; `cleared` is the tag after whose end openpyxl forgets an element."""
        self.cleared = cleared
        self.row = self.column = 0  # of the last cell
        self.tags = self.texts = 0  # bytes that stay in memory of tags and of texts
        self.text = 0  # bytes of the text that is being read
        self.levels = []  # tags and texts at the start of each element that is open

    def begin_element(self, tag, attributes):
        self.text, skipped = 0, 0
        if tag == ROW:
            last, self.row, self.column = self.row, float(attributes.get("r", self.row + 1)), 0
            if not last < self.row <= MAX_ROWS:
                raise ValidationError(UNREADABLE)
        elif "r" in attributes:
            last, self.column = self.column, coordinate_to_tuple(attributes["r"])[1]
            skipped = max(self.column - last - 1, 0)
            if tag == CELL and self.column <= last:
                raise ValidationError(UNREADABLE)
        self.parts += 2 + len(attributes) + skipped
        self.tags += (100 if tag == self.cleared else 1000) + 100 * len(attributes)
        self.levels.append((self.tags, self.texts))
        check_limit(self.parts, MAX_PARTS)
        check_limit(self.tags + self.texts, MAX_KEPT)

    def end_element(self, tag):
        tags, texts = self.levels.pop()
        self.text = 0
        if tag == self.cleared:
            self.tags = tags
            if tag == ROW:
                self.texts = texts

    def add_text(self, chunk):
        self.text += len(chunk)
        self.texts += sys.getsizeof(chunk)
        check_limit(self.text, MAX_TEXT)


def refuse_doctype(*_):
    """Refuse a document type, which can define entities."""
    raise ValidationError(UNREADABLE)


def check_limit(number, maximum):
    """Raise ValidationError for a number of bytes or parts that is too large."""
    if number > maximum:
        raise ValidationError(TOO_LARGE)


def show_cell(cell):
    """Return a cell's value as a person sees it."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        return show_number(value, cell.number_format)
    if isinstance(value, datetime.timedelta):
        seconds = round(value.total_seconds())
        shown = f"{seconds // 3600}:{seconds // 60 % 60:02}"
        return f"{shown}:{seconds % 60:02}" if "s" in cell.number_format else shown
    if isinstance(value, datetime.date | datetime.time):
        return show_date(value, LOCAL_FORMATS.get(cell.number_format, cell.number_format))
    return unescape(str(value))


# Formats that are shown as the language of the spreadsheet has them
LOCAL_FORMATS = {"mm-dd-yy": "yyyy-mm-dd", "m/d/yy h:mm": "yyyy-mm-dd h:mm"}
# In a number format: texts in quotes or after "\\", [colours], and blanks as wide as a character
FORMAT_TOKEN = re.compile(r'"([^"]*)"|\\(.)|\[[^\]]*\]|_.|\*.|(yyyy|yy|m+|d+|h+|s+|AM/PM|[0#?,.]+|%|.)', re.IGNORECASE)


def show_number(value, number_format):
    """Return a number in a number format such as 0000, 0.00 or "CS "000; others count as General."""
    if number_format == "General":
        return f"{value:.15g}"
    section = number_format.split(";")[0]
    tokens = list(FORMAT_TOKEN.finditer(section))
    digits = [token[3] for token in tokens if token[3] and token[3][0] in "0#?,."]
    others = "".join(token[3] or "" for token in tokens if token[3] not in digits)
    if value < 0 or len(digits) != 1 or others.strip("- /()%"):
        return f"{value:.15g}"
    whole, _, decimals = digits[0].partition(".")
    value = value * 100 if "%" in others else value
    shown = f"{value:{',' if ',' in whole else ''}.{len(decimals)}f}"
    integer, point, fraction = shown.partition(".")
    integer = integer.zfill(whole.count("0"))
    while fraction and decimals[len(fraction) - 1] != "0" and fraction.endswith("0"):
        fraction = fraction[:-1]
    number = integer + (point + fraction if fraction else "")
    return "".join(number if token[3] in digits else token[1] or token[2] or token[3] or "" for token in tokens).strip()


DATE_PARTS = "yyyy %Y, yy %y, mmmm %B, mmm %b, mm %m, dddd %A, ddd %a, dd %d, hh %H, ss %S, am/pm %p"
DATE_PARTS = dict(part.split() for part in DATE_PARTS.split(", "))  # of a format, as strftime has them


def show_date(value, number_format):
    """Return a date or time in a date format such as d-mmm; in ISO 8601 if the format is none."""
    if not is_date_format(number_format):
        return str(value)
    if isinstance(value, datetime.time):
        value = datetime.datetime.combine(datetime.date(1899, 12, 30), value)
    shown, after_hour = "", False
    for token in FORMAT_TOKEN.finditer(number_format.split(";")[0]):
        part = (token[3] or "").lower()
        if part in ("m", "mm") and after_hour:
            shown += f"{value:%M}"
        elif part in ("m", "d", "h"):
            shown += str({"m": value.month, "d": value.day, "h": value.hour}[part])
        elif part in DATE_PARTS:
            shown += value.strftime(DATE_PARTS[part])
        else:
            shown += token[1] or token[2] or token[3] or ""
        after_hour = part in ("h", "hh") or (after_hour and part == ":")
    return shown.strip()


# -- Writing -----------------------------------------------------------------------------------------------------------

PARTS = {  # of a workbook with one sheet; number format 49 is "@", text, in which a spreadsheet changes nothing
    "[Content_Types].xml": """<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Override PartName="/xl/workbook.xml" ContentType="{type}.sheet.main+xml"/>
<Override PartName="/xl/styles.xml" ContentType="{type}.styles+xml"/>
<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{type}.worksheet+xml"/></Types>""",
    "_rels/.rels": """<Relationships xmlns="{relations}">
<Relationship Id="rId1" Type="{relation}/officeDocument" Target="xl/workbook.xml"/></Relationships>""",
    "xl/workbook.xml": """<workbook xmlns="{sheet}" xmlns:r="{relation}">
<sheets><sheet name="{title}" sheetId="1" r:id="rId1"/></sheets></workbook>""",
    "xl/_rels/workbook.xml.rels": """<Relationships xmlns="{relations}">
<Relationship Id="rId1" Type="{relation}/worksheet" Target="worksheets/sheet1.xml"/>
<Relationship Id="rId2" Type="{relation}/styles" Target="styles.xml"/></Relationships>""",
    "xl/styles.xml": """<styleSheet xmlns="{sheet}"><fonts count="1"><font/></fonts>
<fills count="2"><fill><patternFill patternType="none"/></fill><fill><patternFill patternType="gray125"/></fill></fills>
<borders count="1"><border/></borders><cellStyleXfs count="1"><xf/></cellStyleXfs>
<cellXfs count="2"><xf/><xf numFmtId="49" applyNumberFormat="1"/></cellXfs>
<cellStyles count="1"><cellStyle name="Normal" xfId="0"/></cellStyles></styleSheet>""",
}
NAMESPACES = {
    "sheet": SHEET,
    "type": "application/vnd.openxmlformats-officedocument.spreadsheetml",
    "relations": "http://schemas.openxmlformats.org/package/2006/relationships",
    "relation": "http://schemas.openxmlformats.org/officeDocument/2006/relationships",
}
NOT_XML = dict.fromkeys((0xFFFE, 0xFFFF), "\ufffd")


# openpyxl writes rows through temporary files, for which there is no place on a read-only root, and takes nine times as
# long: 7.3 s for 100,000 courses.
def write_sheet(title, columns, rows):
    """Return an .xlsx file, in bytes, with one sheet of text cells: the rows, each a list of texts."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, xml in PARTS.items():
            archive.writestr(zipfile.ZipInfo(name), xml.format(title=html.escape(title), **NAMESPACES))
        sheet = zipfile.ZipInfo("xl/worksheets/sheet1.xml")  # has no time: the same courses are the same bytes
        sheet.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(sheet, "w", force_zip64=True) as part:
            part.write(f'<worksheet xmlns="{SHEET}"><cols>'.encode())
            part.write(f'<col min="1" max="{columns}" width="30" style="1"/></cols><sheetData>'.encode())
            for row in rows:
                part.write(f"<row>{''.join(map(write_cell, row))}</row>".encode())
            part.write(b"</sheetData></worksheet>")
    return file.getvalue()


def write_cell(text):
    """Return the XML of a text cell."""
    text = html.escape(re.sub("_(?=x[0-9A-Fa-f]{4}_)", "_x005F_", text.translate(NOT_XML)), quote=False)
    return f'<c s="1" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'
