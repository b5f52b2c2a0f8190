"""A strict parser of report pages, and what stands in their table and their first paragraph."""

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Node:
    """An element with its attributes and children; text is kept as strings among the children."""

    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, dict(attributes), []

    def all(self, tag="", **attributes):
        """Descendants with this tag and, for `class_`, this class among theirs."""
        for child in self.children:
            if isinstance(child, Node):
                wanted = attributes.get("class_")
                if tag in ("", child.tag) and (
                    wanted is None or wanted in (child.attributes.get("class") or "").split()
                ):
                    yield child
                yield from child.all(tag, **attributes)

    @property
    def text(self):
        parts = (c if isinstance(c, str) else c.text for c in self.children)
        return re.sub(r"\s+", " ", "".join(parts).replace("\xa0", " ")).strip()


class Strict(HTMLParser):
    """Builds the tree and refuses an end tag that does not close the innermost element."""

    def __init__(self):
        super().__init__()
        self.open = [Node("document", [])]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, attrs)
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, attrs))

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(path: Path) -> Node:
    parser = Strict()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert len(parser.open) == 1, "an element was never closed"
    return parser.open[0]


def table(page: Node) -> list[tuple[str, list[str]]]:
    """Per row of the first accuracy table: the run, and per cell `mark value low-high`."""
    (body,) = next(d for d in page.all("div") if d.attributes.get("aria-labelledby") == "table-1").all("tbody")
    rows = []
    for row in body.all("tr"):
        cells = []
        for cell in row.all("td"):
            parts = [next(cell.all(class_=name), None) for name in ("mark", "value", "range")]
            cells.append(" ".join(part.text for part in parts if part is not None))
        rows.append((next(row.all(class_="name")).text, cells))
    return rows


def lede(path: Path) -> str:
    return " ".join(next(parse(path).all("p", class_="lede")).text.split())
