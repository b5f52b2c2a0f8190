"""Parts of every page: the environment of its template, and the format of numbers and settings."""

import math
import re
import shlex
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
_NAMES = "r[-_]fgsm|fgsm|apgd|pgd|udpr?|uta|trades|fab|fmn|ddn|pdpgd|pma|cw|bg|crown|ibp|pgi|mma|mtl"
_OPTION = re.compile(r"(?<!\S)--[\w-]+ \w+")
_ACRONYM = re.compile(rf"(?<![a-z])(?:{_NAMES})(?:-(?:at|ce|dlr|t))?(?![a-z])")


def template(name: str) -> Template:
    """Return one of the package's templates, with the functions of this module as filters."""
    environment = Environment(
        loader=PackageLoader("equipoise.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "radius": radius,
        "norm": lambda norm: NORMS.get(norm, norm),
        "title": title,
        "value": value,
        "number": number,
        "duration": duration,
        "count": count,
        "sentence": sentence,
        "quoted": lambda path: shlex.quote(str(path)),
    }
    return environment.get_template(name)


@cache
def light() -> dict[str, str]:
    """Return the style sheet's colours on a light page, by name."""
    css = files("equipoise.report").joinpath("style.css").read_text("utf-8")
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css[: css.index("@media")]))


def percent(share: float) -> str:
    """Return a share in percent, with one decimal."""
    return f"{100 * share:.1f}"


def interval(bounds: tuple[float, float]) -> str:
    """Return an interval of shares in percent, with one decimal."""
    return f"{percent(bounds[0])}–{percent(bounds[1])}"


def radius(eps: float) -> str:
    """Return a radius as people write it: `8/255` for a whole number of grey levels, else a decimal number."""
    levels = eps * 255
    whole = 0 < eps < 1 and abs(levels - round(levels)) < 1e-6 and round(eps, 3) != eps
    return f"{round(levels)}/255" if whole else f"{eps:g}"


def title(name: str) -> str:
    """Return a method's or attack's name with acronyms in capitals and a capital first letter."""
    name = _ACRONYM.sub(lambda match: match[0].upper(), name).replace("deepfool", "DeepFool")
    name = name.replace("hop-skip-jump", "HopSkipJump")
    return name.replace("autoattack", "AutoAttack") if name.startswith("autoattack") else name[:1].upper() + name[1:]


def number(amount: Any) -> str:
    """Return a measured number in four digits, or a dash."""
    return f"{amount:.4g}" if isinstance(amount, int | float) and math.isfinite(amount) else "–"


def count(amount: float | None) -> str:
    """Return a median of integers, with a decimal only where it is no integer itself; a dash for None."""
    if amount is None:
        return "–"
    return f"{amount:,.0f}" if amount == int(amount) else f"{amount:,.1f}"


def value(setting: Any) -> str:
    """Return a setting of any kind as one line of text."""
    match setting:
        case bool():
            return "yes" if setting else "no"
        case None:
            return "none"
        case Mapping() | list() | tuple() if not setting:
            return "none"
        case float():
            return radius(setting)
        case Mapping():
            kind = setting.get("kind")
            items = ((str(k).replace("_", " "), v) for k, v in setting.items() if k != "kind")
            text = ", ".join(f"{k} ({value(v)})" if isinstance(v, Mapping) else f"{k} {value(v)}" for k, v in items)
            return f"{kind}: {text}" if kind and text else str(kind or text)
        case list() | tuple():
            return ", ".join(value(v) for v in setting)
    return NORMS.get(str(setting), str(setting))


def sentence(text: str) -> Markup:
    """Return a sentence with its numbers and options unbroken at the ends of lines."""
    unbroken = str(escape(text)).replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")
    return Markup(_OPTION.sub(r"<code>\g<0></code>", unbroken))


def duration(seconds: float) -> str:
    """Return seconds in readable units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes} min {remainder} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
