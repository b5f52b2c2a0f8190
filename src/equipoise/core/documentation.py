"""The documentation of dataclass fields: the text below a field, which Python itself discards."""

import ast
import sys
import textwrap
from dataclasses import fields, is_dataclass
from inspect import cleandoc, getsource
from typing import Any, SupportsIndex

_WIDTH = 100


def attribute_docs(kind: type) -> dict[str, str]:
    """Return the text below each field of a dataclass and of those that it derives from."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base) or base.__module__ == "types":
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(getsource(base))).body
        except (OSError, TypeError):  # made by a program, or without its source
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, doc in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
                docs[field.target.id] = " ".join(ast.literal_eval(doc.value).split())
    return docs


def show_attributes(module: str) -> None:
    """Let `help` show the documentation of the fields of all dataclasses of this package in the names of a module."""
    for kind in list(vars(sys.modules[module]).values()):
        own = isinstance(kind, type) and is_dataclass(kind) and kind.__module__.startswith("equipoise.")
        if own and not isinstance(vars(kind).get("__doc__"), _WithAttributes):
            text = _WithAttributes(kind.__doc__ or "")
            text.owner = kind
            kind.__doc__ = text


class _WithAttributes(str):
    """The docstring of a dataclass with a section on its fields. It is made on demand, as that reads the source.

    A class that is asked for its docstring makes it; `pydoc` takes that of an abstract class from the dictionary of the
    class, and expands its tabs.
    """

    owner: Any

    def __get__(self, instance: object, owner: type) -> str:
        return self.expandtabs()

    def expandtabs(self, tabsize: SupportsIndex = 8) -> str:
        docs = attribute_docs(self.owner)
        wrapped = [
            textwrap.fill(f"{f.name}: {docs[f.name]}", _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)
            for f in fields(self.owner)
            if f.name in docs
        ]
        text = cleandoc(str.__str__(self))
        return "\n".join([text, "", "Attributes:", *wrapped, ""]) if wrapped else text
