"""Where the elements of an XML document stand in its text, so that one can be changed and all else stays byte for byte.

The document is read by expat, as by everybody: what is wrong with it is refused there. A DOCTYPE is refused before any
entity in it is expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat
from xml.sax.saxutils import escape

from storkit.core.errors import UsageError
from storkit.guests.documents.edits import Edit

_ATTRIBUTE = re.compile(r"""([^\s=<>"'/]+)\s*=\s*("[^"]*"|'[^']*')""")


@dataclass(slots=True)
class Element:
    """An element, and where it stands."""

    tag: str
    attributes: dict[str, str]
    start: int
    parent: Element | None
    opened: int = 0
    """Where its start tag ends."""
    closed: int = 0
    """Where its end tag begins; as `opened` for an element without one."""
    end: int = 0
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, path: str) -> Iterator[Element]:
        """The descendants of a path of tags."""
        first, _, rest = path.partition("/")
        for child in self.children:
            if child.tag == first:
                yield from child.all(rest) if rest else (child,)

    def first(self, path: str) -> Element | None:
        """The first of them."""
        return next(self.all(path), None)

    def get(self, path: str, attribute: str) -> str:
        """An attribute of a descendant; empty if there is none."""
        found = self.first(path) if path else self
        return found.attributes.get(attribute, "") if found else ""


def elements(text: str) -> Element:
    """The root of an XML document. Raises UsageError."""
    data = text.encode()
    parser = expat.ParserCreate("UTF-8")
    parser.ordered_attributes = False
    root = Element("", {}, 0, None)
    open_elements = [root]

    def begin(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, parser.CurrentByteIndex, open_elements[-1])
        element.opened = _tag_end(data, element.start)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def finish(tag: str) -> None:
        element = open_elements.pop()
        if data[element.opened - 2 : element.opened] == b"/>":
            element.closed = element.end = element.opened
        else:
            element.closed = parser.CurrentByteIndex
            element.end = data.index(b">", element.closed) + 1

    def said(piece: str) -> None:
        open_elements[-1].text += piece

    def doctype(*_: object) -> NoReturn:
        raise UsageError("the XML has a DOCTYPE, which no libvirt domain needs", "remove it")

    parser.StartElementHandler, parser.EndElementHandler = begin, finish
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = said, doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise UsageError(f"this is no XML: {error}", "print it with: virsh dumpxml --inactive NAME") from None
    _in_characters(root, data)
    return root.children[0]


def _tag_end(data: bytes, start: int) -> int:
    """Where the start tag that begins at `start` ends: its first `>` outside quotes."""
    match = re.compile(rb"""(?:[^>"']|"[^"]*"|'[^']*')*>""").match(data, start)
    assert match, "expat has read this tag"
    return match.end()


def _in_characters(root: Element, data: bytes) -> None:
    """Places in the text, of places in its bytes."""
    if data.isascii():
        return
    waiting = list(root.children)
    places: set[int] = set()
    everything: list[Element] = []
    while waiting:
        element = waiting.pop()
        everything.append(element)
        waiting += element.children
        places |= {element.start, element.opened, element.closed, element.end}
    characters, before, count = {}, 0, 0
    for place in sorted(places):
        count += len(data[before:place].decode())
        characters[place], before = count, place
    for element in everything:
        element.start, element.opened = characters[element.start], characters[element.opened]
        element.closed, element.end = characters[element.closed], characters[element.end]


def with_attribute(text: str, element: Element, name: str, value: str, new_name: str = "") -> Edit:
    """The change of an attribute's value, and of its name, or its addition."""
    tag_end = element.start + 1 + len(re.match(r"[^\s/>]+", text[element.start + 1 :]).group())  # type: ignore[union-attr]
    for match in _ATTRIBUTE.finditer(text, tag_end, element.opened):
        if match[1] == name:
            quote = match[2][0]
            return Edit(match.start(), match.end(), f"{new_name or name}={quote}{_quoted(value, quote)}{quote}")
    return Edit(tag_end, tag_end, f" {new_name or name}={_opposite(value)}")


def with_text(element: Element, value: str) -> Edit:
    """The change of an element's text, of one that has no children."""
    if element.closed == element.end:
        tag = element.tag
        return Edit(element.start, element.end, f"<{tag}>{escape(value)}</{tag}>")
    return Edit(element.opened, element.closed, escape(value))


def without(text: str, element: Element) -> Edit:
    """The removal of an element, with the line that it has to itself."""
    start, end = element.start, element.end
    before = text.rfind("\n", 0, start)
    if not text[before + 1 : start].strip() and text[end : end + 1] == "\n":
        start, end = before + 1, end + 1
    return Edit(start, end, "")


def _quoted(value: str, quote: str) -> str:
    return escape(value, {'"': "&quot;"} if quote == '"' else {"'": "&apos;"})


def _opposite(value: str) -> str:
    return f"'{_quoted(value, chr(39))}'"
