"""Evaluations for continuous integration: a gate on the robust accuracy, JUnit XML and SARIF. No torch."""

import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

from equipoise.core.errors import require
from equipoise.core.files import printable
from equipoise.results.records import AttackRecord, Evaluation

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RULES = {
    "robust-accuracy": "The lower end of the 95 % interval of a robust accuracy is below the required one.",
    "doubtful-result": "A measurement gives reason to doubt the robust accuracy.",
}


def attacked(evaluation: Evaluation) -> list[AttackRecord]:
    """Return the results under attack. Raises `EquipoiseError` if there is none."""
    results = [result for result in evaluation.results if result.attack != "clean"]
    require(len(results) > 0, "there is no robust accuracy without an attack: give one, such as --attacks autoattack.")
    return results


def weakest(evaluation: Evaluation) -> AttackRecord:
    """Return the result whose 95 % interval begins lowest."""
    return min(attacked(evaluation), key=lambda result: result.interval[0])


def fails(result: AttackRecord, fail_under: float | None) -> bool:
    """Whether the lower end of the interval of an accuracy is below what is required, None for nothing."""
    return fail_under is not None and result.interval[0] < fail_under


def sentence(result: AttackRecord, fail_under: float | None = None) -> str:
    """Return an accuracy in words, and what is required of it."""
    low, high = result.interval
    required = f"; at least {fail_under:.1%} is required" if fails(result, fail_under) else ""
    return (
        f"{_named(result)}: accuracy {result.accuracy:.1%} on {result.n} samples, 95 % interval {low:.1%} to "
        f"{high:.1%}{required}"
    )


def junit(evaluation: Evaluation, fail_under: float | None = None) -> bytes:
    """Return JUnit XML: a test for each accuracy, which fails where `fails` says so; flags are on the error output."""
    results = evaluation.results
    failures = [result for result in results if result.attack != "clean" and fails(result, fail_under)]
    counts = {"tests": str(len(results)), "failures": str(len(failures)), "errors": "0"}
    seconds = f"{sum(result.seconds for result in results):.3f}"
    suite = xml.Element("testsuite", {"name": f"equipoise {printable(evaluation.target)}", "time": seconds, **counts})
    for result in results:
        about = {"classname": f"equipoise.{printable(evaluation.target)}", "time": f"{result.seconds:.3f}"}
        case = xml.SubElement(suite, "testcase", {"name": printable(_named(result)), **about})
        if result in failures:
            text = printable(sentence(result, fail_under))
            xml.SubElement(case, "failure", message=text, type="robust accuracy").text = text
        xml.SubElement(case, "system-out").text = printable(sentence(result))
    if evaluation.flags:
        xml.SubElement(suite, "system-err").text = "\n".join(printable(flag) for flag in evaluation.flags)
    root = xml.Element("testsuites", {"name": "equipoise", "time": seconds, **counts})
    root.append(suite)
    return xml.tostring(root, encoding="utf-8", xml_declaration=True)


def sarif(evaluation: Evaluation, record: Path, fail_under: float | None = None) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log: an error for each accuracy that `fails`, a pass for any other, a warning for each flag.

    All are located in the file of the `record`.
    """
    place = {"artifactLocation": {"uri": record.as_posix()}, "region": {"startLine": 1}}

    def entry(rule: str, level: str, text: str, kind: str) -> dict[str, Any]:
        message = {"text": printable(text)}
        locations = [{"physicalLocation": place}]
        return {"ruleId": rule, "level": level, "kind": kind, "message": message, "locations": locations}

    results = []
    for result in attacked(evaluation):
        failed = fails(result, fail_under)
        level, kind = ("error", "fail") if failed else ("none", "pass")
        results.append(entry("robust-accuracy", level, sentence(result, fail_under), kind))
    results += [entry("doubtful-result", "warning", str(flag), "fail") for flag in evaluation.flags]
    rules = [{"id": name, "shortDescription": {"text": text}} for name, text in _RULES.items()]
    version = evaluation.provenance.versions.get("equipoise", "")
    driver = {"name": "equipoise", "version": version, "rules": rules}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _named(result: AttackRecord) -> str:
    return result.attack if result.attack == "clean" else f"{result.attack}, {result.norm} {result.eps:.4g}"
