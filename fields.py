"""The kinds of fields: each is a column, and has one rule for its values, which it can state in words."""

import re
import unicodedata

import msgspec
import peewee

CONTROL = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"  # for brackets; includes surrogates, which no database can store


class ValidationError(ValueError):
    """Input that breaks a rule; the message says which."""


def to_nfc(text, maximum):
    """Return a text in NFC, in which texts are stored and compared (Unicode Standard Annex 15).

    A text that is longer than `maximum` in NFC too is returned unchanged: normalizing it may take quadratic time. No
    character in NFC is made of more than four.
    """
    return unicodedata.normalize("NFC", text) if len(text) <= 4 * maximum else text


class Text(peewee.CharField):
    """A text of `minimum` to `maximum` characters without control characters. White space at its ends is trimmed.

    A field with a `default` may be left out of requests. `label` is what sentences call the field. The `key`
    identifies a row, also in a URL, so it has no "/" and is not only dots, which clients resolve themselves
    (RFC 3986 §5.2.4). With `filter`, lists can be filtered by the whole text. `separator` joins the columns of a file
    that make up one value; unless it is a blank, the value is a list, which repeated courses can extend.
    """

    name = "the text"  # until Peewee gives a column its name

    def __init__(
        self,
        minimum,
        maximum,
        default=None,
        *,
        label="",
        key=False,
        filter=False,  # noqa: A002
        unique=False,
        separator=" ",
    ):
        super().__init__(maximum, default=default, unique=key or unique)
        self.separator = separator
        self.minimum, self.maximum, self.label, self.key, self.filter = minimum, maximum, label, key, filter
        allowed = rf"(?!\.+$)[^/{CONTROL}]" if key else f"[^{CONTROL}]"
        self.pattern = re.compile(f"{allowed}{{{minimum},{maximum}}}")
        limits = "not only dots, with no / or control characters" if key else "with no control characters"
        self.rule = f"{minimum} to {maximum} characters, {limits}"

    @property
    def required_in_files(self):
        """Whether each course of a file must give it."""
        return self.default is None and self.minimum > 0

    def clean(self, value):
        """Return the value, trimmed and in NFC; raise ValidationError if it breaks the rule."""
        if not isinstance(value, str):
            raise ValidationError(f"{self.name} must be a string")
        text = to_nfc(value.strip(), self.maximum)
        if self.key and not text:
            raise ValidationError(f"{self.label} must be provided")
        if not self.pattern.fullmatch(text):
            raise ValidationError(f"{self.name} must be {self.rule}")
        return text

    def parse(self, text):
        """Return the value that a text from a query or a file stands for; raise ValidationError for a bad one."""
        return self.clean(text)


class WholeNumber(peewee.BigIntegerField):
    """A whole number from `minimum` to `maximum`, by which lists can be filtered. `default`, `label`: see Text."""

    name, key, filter, separator = "the number", False, True, " "

    def __init__(self, minimum, maximum, default=None, *, label=""):
        super().__init__(default=default)
        self.minimum, self.maximum, self.label = minimum, maximum, label
        self.rule = f"a whole number from {minimum} to {maximum}"

    @property
    def required_in_files(self):
        """Whether each course of a file must give it."""
        return self.default is None

    def clean(self, value):
        """Return the value as an int, 3.0 as well (JSON Schema); raise ValidationError if it breaks the rule."""
        is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
        if not is_whole or not self.minimum <= value <= self.maximum:
            raise ValidationError(f"{self.name} must be {self.rule}")
        return int(value)

    def parse(self, text):
        """Return the value that a text from a query or a file stands for; raise ValidationError for a bad one."""
        try:
            return self.clean(msgspec.convert(text.strip(), int, strict=False))
        except msgspec.ValidationError:
            return self.clean(None)


class Password(peewee.CharField):
    """The hash of a password; a password itself is any text of 1 to `maximum` characters, and is not trimmed."""

    minimum = 1

    def __init__(self, maximum):
        super().__init__(255)
        self.maximum = maximum

    def clean(self, value):
        """Return the password in NFC; raise ValidationError if it breaks the rule."""
        if not isinstance(value, str):
            raise ValidationError(f"{self.name} must be a string")
        if not re.fullmatch(rf"[^\ud800-\udfff]{{1,{self.maximum}}}", value):
            raise ValidationError(f"{self.name} must be 1 to {self.maximum} characters, with no surrogates")
        return to_nfc(value, self.maximum)
