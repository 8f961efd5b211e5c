"""Excel files (.xlsx): the rows of a sheet in, as a person sees them, and rows of text out.

An .xlsx file is a zip archive of XML. A megabyte of it can unpack to a gigabyte, or hold a row of a hundred million
cells, so it takes a pass of expat to know what is safe to read. That pass might as well read the cells: it takes a
fifth of openpyxl's time (measured), and knows when to stop.
"""

import datetime
import functools
import html
import io
import posixpath
import re
import zipfile
import zlib
from xml.parsers import expat

from fields import ValidationError

MAX_UNPACKED, MAX_TEXTS = 192 * 2**20, 64 * 2**20  # bytes of the XML that is read, and of what is kept in memory
MAX_PARTS = 5_000_000  # tags and attributes of this XML, and cells that rows skip: 100,000 courses have three million
MAX_TEXT = 2**20  # bytes between two tags, or in one
SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
UNREADABLE = "this Excel file cannot be read; open it in a spreadsheet and save it again, or as CSV UTF-8"
TOO_LARGE = "this Excel file takes too much time or memory to read; save the list alone as CSV UTF-8"
FAULTS = (expat.ExpatError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, LookupError, ValueError)


def read_sheet(data, title=""):
    """Yield the rows of a sheet, the first visible one by default: the number of each, and its texts.

    A row ends with its last cell that has a value. Raises ValidationError for what cannot be read, also later on.
    """
    try:
        book = Workbook(data)
        yield from book.read_rows(book.find_sheet(title))
    except ValidationError:
        raise
    except FAULTS:
        raise ValidationError(UNREADABLE) from None


class Workbook:
    """An .xlsx file that is being read: the parts of its archive, its number formats and its texts."""

    def __init__(self, data):
        self.archive = zipfile.ZipFile(io.BytesIO(data))
        self.bytes_left, self.parts_left = MAX_UNPACKED, MAX_PARTS
        self.parts, self.sheets, self.epoch = {}, [], datetime.datetime(1899, 12, 30)  # noqa: DTZ001 (a spreadsheet has no time zone)
        for name, attributes in self.read_attributes("xl/_rels/workbook.xml.rels"):
            if name == "Relationship":  # of each part, by its id or the last word of its kind
                part = posixpath.normpath(posixpath.join("/xl", attributes["Target"])).lstrip("/")
                self.parts[attributes["Id"]] = self.parts[posixpath.basename(attributes["Type"])] = part
        for name, attributes in self.read_attributes("xl/workbook.xml"):
            if name == "sheet":
                relation = next(value for key, value in attributes.items() if key.endswith("relationships}id"))
                self.sheets.append((attributes["name"].strip(), attributes.get("state"), self.parts[relation]))
            elif name == "workbookPr" and attributes.get("date1904") in ("1", "true"):
                self.epoch = datetime.datetime(1904, 1, 1)  # noqa: DTZ001
        self.formats, self.texts = list(self.read_formats()), list(self.read_texts())

    def read_tags(self, part):
        """Yield each tag of an XML part: its name, its attributes or None if it is an end tag, and else its text.

        The text is what stands in front of the end tag.
        """
        self.bytes_left -= self.archive.getinfo(part).file_size
        if self.bytes_left < 0:
            raise ValidationError(TOO_LARGE)
        tags, texts = [], []
        parser = expat.ParserCreate(namespace_separator="}")

        def begin(name, attributes):
            tags.append((name.rpartition("}")[2], attributes, None))
            texts.clear()
            self.spend(2 + len(attributes))

        def end(name):
            tags.append((name.rpartition("}")[2], None, "".join(texts)))
            texts.clear()

        def refuse_doctype(*_):  # which can define entities
            raise ValidationError(UNREADABLE)

        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = begin, end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = texts.append, refuse_doctype
        length, chunk = 0, b" "
        with self.archive.open(part) as file:
            while chunk:
                chunk = file.read(65536)
                parser.Parse(chunk, not chunk)
                length += len(chunk)
                if length - parser.CurrentByteIndex > MAX_TEXT or sum(map(len, texts)) > MAX_TEXT:
                    raise ValidationError(TOO_LARGE)
                yield from tags
                tags.clear()

    def spend(self, parts):
        """Count parts of the XML; raise ValidationError for too many."""
        self.parts_left -= parts
        if self.parts_left < 0:
            raise ValidationError(TOO_LARGE)

    def read_attributes(self, part):
        """Yield the name and the attributes of each element of an XML part."""
        return ((name, attributes) for name, attributes, _ in self.read_tags(part) if attributes is not None)

    def read_formats(self):
        """Yield the number format of each style that a cell can have."""
        formats, in_cells = dict(FORMATS), False
        for name, attributes in self.read_attributes(self.parts["styles"]) if "styles" in self.parts else ():
            if name == "numFmt":
                formats[attributes["numFmtId"]] = attributes["formatCode"]
            elif name in ("cellStyleXfs", "cellXfs"):
                in_cells = name == "cellXfs"
            elif name == "xf" and in_cells:
                yield formats.get(attributes.get("numFmtId"), "General")

    def read_texts(self):
        """Yield the texts that cells share."""
        part = self.parts.get("sharedStrings")
        if not part:
            return
        if self.archive.getinfo(part).file_size > MAX_TEXTS:
            raise ValidationError(TOO_LARGE)
        text, in_ruby = "", False  # which says how East Asian text is pronounced
        for name, attributes, tail in self.read_tags(part):
            if name == "rPh":
                in_ruby = attributes is not None
            elif name == "t" and attributes is None and not in_ruby:
                text += tail
            elif name == "si" and attributes is None:
                yield unescape(text)
                text = ""

    def find_sheet(self, title):
        """Return the part that holds the sheet with this title, or the first visible one."""
        if not self.sheets:
            raise ValidationError("this Excel file has no sheets")
        if not title:
            return min(self.sheets, key=lambda sheet: sheet[1] in ("hidden", "veryHidden"))[2]
        for name, _, part in self.sheets:
            if name.casefold() == title.strip().casefold():
                return part
        titles = ", ".join(name for name, *_ in self.sheets)
        raise ValidationError(f"there is no sheet {title}; the sheets are {titles}")

    def read_rows(self, part):
        """Yield the number and the texts of each row of a sheet that has any."""
        number, cells, column, cell, value = 0, [], 0, {}, None
        for name, attributes, text in self.read_tags(part):
            if name == "c" and attributes is not None:
                column = find_column(attributes["r"]) if "r" in attributes else column + 1
                cell, value = attributes, None  # which a blank cell with a format has
            elif name in ("v", "t") and attributes is None:
                value = (value or "") + text
            elif name == "c" and value is not None:
                gap = max(column - len(cells), 0)
                self.spend(gap)
                cells += [""] * gap
                cells[column - 1] = self.show_cell(cell.get("t", "n"), int(cell.get("s", 0)), value)
            elif name == "row" and attributes is not None:
                number, cells, column = max(number + 1, int(attributes.get("r", 0))), [], 0
            elif name == "row" and cells:
                yield number, cells

    def show_cell(self, kind, style, value):
        """Return a cell's value as a person sees it."""
        if kind == "s":
            return self.texts[int(value)]
        if kind == "b":
            return "TRUE" if value == "1" else "FALSE"
        if kind != "n" or not value:
            return unescape(value)
        number, number_format = float(value), self.formats[style] if self.formats else "General"
        if is_date(number_format):
            early = number < 60 and self.epoch.year == 1899  # spreadsheets think that 1900 was a leap year
            moment = self.epoch + datetime.timedelta(days=number + (number >= 1 and early))
            return show_date(moment + datetime.timedelta(microseconds=500), number_format)
        return show_number(number, number_format)


@functools.lru_cache(maxsize=1000)
def is_date(number_format):
    """Return whether a number format shows a date or a time."""
    return re.search("[dmyhs]", NO_DATE.sub("", number_format), re.IGNORECASE) is not None


def find_column(reference):
    """Return the number of a cell's column, from 1: 28 of AB5."""
    number = 0
    for letter in re.findall("^[A-Z]{1,3}", reference)[0]:
        number = number * 26 + ord(letter) - 64
    return number


def unescape(text):
    """Return a text without escapes such as _x005F_, an underscore."""
    return re.sub("_x(?!D[89A-F])([0-9A-F]{4})_", lambda escape: chr(int(escape[1], 16)), text, flags=re.IGNORECASE)


# The number formats that have no code in a file. 14 and 22 are shown as the language of the spreadsheet has them.
FORMATS = """1 0|2 0.00|3 #,##0|4 #,##0.00|9 0%|10 0.00%|14 yyyy-mm-dd|15 d-mmm-yy|16 d-mmm|17 mmm-yy|18 h:mm AM/PM|
    19 h:mm:ss AM/PM|20 h:mm|21 h:mm:ss|22 yyyy-mm-dd h:mm|45 mm:ss|46 h:mm:ss|47 mm:ss"""
FORMATS = dict(line.strip().split(" ", 1) for line in FORMATS.split("|"))
NO_DATE = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]|_.|General', re.IGNORECASE)  # what has letters, but not of dates
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
    """Return a date or time in a date format such as d-mmm."""
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
