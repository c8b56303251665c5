"""Elements of an XML header by their local name, whatever the namespace, and numbers in them."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from kspace.errors import InputError


def decode_xml(xml: bytes | str, source: str) -> str:
    """The text of a header as stored, without the NUL bytes that some writers add; InputError if it is not UTF-8."""
    if isinstance(xml, bytes):
        try:
            xml = xml.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"the XML header is not UTF-8 text ({error.reason} at byte {error.start})",
                source,
                "copy or convert the scan again",
            ) from error
    return xml.rstrip("\x00 \r\n\t")


def parse_xml(text: str, source: str) -> ElementTree.Element:
    """The root of a header; InputError if it is not well-formed or declares entities."""
    # A raw file may come from anyone, and ten nested entities expand to gigabytes. No ISMRMRD header needs a DTD.
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise InputError("the XML header declares a DOCTYPE or entities, which no scanner does", source, "remove them")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(
            f"the XML header is truncated or not XML ({error}; it begins {text[:40]!r} and has {len(text)} characters)",
            source,
            "copy or convert the scan again",
        ) from error


def to_number(text: str, name: str, source: str) -> float:
    """The finite number in the element `name`; InputError if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"<{name}> of the XML header is '{text[:40]}', expected a number", source, "correct the XML header")
    return value


def number_of(node: ElementTree.Element | None, name: str, source: str) -> float | None:
    """The number in the child `name`, None where it is missing or empty; InputError if it is none."""
    text = text_of(node, name)
    return None if text is None else to_number(text, name, source)


def text_of(node: ElementTree.Element | None, name: str) -> str | None:
    """The text in the child `name`, None where it is missing or empty."""
    element = child_of(node, name)
    text = (element.text or "").strip() if element is not None else ""
    return text or None


def child_of(node: ElementTree.Element | None, name: str) -> ElementTree.Element | None:
    """The first child `name`, None where it is missing."""
    found = children_of(node, name)
    return found[0] if found else None


def children_of(node: ElementTree.Element | None, name: str | None) -> list[ElementTree.Element]:
    """The children `name`, or all; none of None."""
    if node is None:
        return []
    return [child for child in node if isinstance(child.tag, str) and name in (None, local_name(child.tag))]


def leaves_of(node: ElementTree.Element | None) -> list[ElementTree.Element]:
    """The children that have no children."""
    return [child for child in children_of(node, None) if not len(child)]


def local_name(tag: str) -> str:
    """The name without its namespace."""
    return tag.rpartition("}")[2]
