"""The structs that Python hands to the C kernels are declared twice: field by field they must be the same."""

import ctypes
import re
from importlib.resources import files

import pytest

from equipoise.kernels.native import climbs, layers, squares, training

KINDS = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float, "double": ctypes.c_double}


def declared(file: str, name: str) -> list[tuple[str, object]]:
    """Names and kinds of the fields of a C struct; a pointer is a pointer, whatever to."""
    text = re.sub(r"/\*.*?\*/", "", files("equipoise.kernels.native").joinpath(file).read_text(), flags=re.DOTALL)
    (body,) = re.findall(rf"typedef struct \{{([^}}]*)\}} {name};", text)
    fields: list[tuple[str, object]] = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, variables = re.fullmatch(r"(?:const )?(\w+)\s*(.*)", declaration, flags=re.DOTALL).groups()
        for variable in (part.strip() for part in variables.split(",")):
            is_pointer = variable.startswith("*")
            fields.append((variable.lstrip("*"), "pointer" if is_pointer else KINDS[kind]))
    return fields


def mirrored(struct: type[ctypes.Structure]) -> list[tuple[str, object]]:
    def kind(field: type) -> object:
        return "pointer" if field is ctypes.c_void_p or issubclass(field, ctypes._Pointer) else field

    return [(name, kind(field)) for name, field in struct._fields_]


@pytest.mark.parametrize(
    ("file", "name", "struct"),
    [
        ("layers.h", "layer", layers._LayerStruct),
        ("objectives.h", "term", climbs._TermStruct),
        ("climb.c", "plan", climbs._PlanStruct),
        ("climb.c", "samples", climbs._SamplesStruct),
        ("square.c", "plan", squares._PlanStruct),
        ("square.c", "samples", squares._SamplesStruct),
        ("training.c", "gradients", training._GradientsStruct),
    ],
)
def test_a_struct_is_the_same_in_python_and_in_c(file, name, struct):
    assert len(declared(file, name)) > 2 and mirrored(struct) == declared(file, name)
