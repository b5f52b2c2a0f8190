"""The bracket of a report: certified <= true <= attacked, from records alone."""

import re

from equipoise.report.certified import brackets, narrower
from equipoise.report.report import page
from equipoise.results.outcomes import CertifiedResult
from equipoise.results.records import save

N = 200
COUNTS = {("clean", "linf", 0.0): 180, ("pgd", "linf", 0.1): 120, ("worst case", "linf", 0.1): 110}


def proof(right: int, method: str = "crown", eps: float = 0.1) -> CertifiedResult:
    proven = [i < right for i in range(N)]
    return CertifiedResult(method, "linf", eps, proven, [1.0 if p else -1.0 for p in proven])


def test_a_bracket_is_of_what_leaves_least_in_the_ball(evaluation):
    record = evaluation(COUNTS, certified=[proof(60), proof(20, eps=0.3)])
    ((ball, bracket),) = brackets(record).items()
    assert ball == ("linf", 0.1), "there is no attack in the other"
    shares = [r.accuracy for r in (bracket.certified, bracket.attacked, bracket.clean)]
    assert shares == [60 / N, 110 / N, 180 / N]


def test_of_two_brackets_the_narrower_one_counts(evaluation):
    wide, narrow = (brackets(evaluation(COUNTS, certified=[proof(*p)])) for p in ((40, "ibp"), (60, "crown")))
    for pair in ((wide, narrow), (narrow, wide), ({}, narrow)):
        assert narrower(*pair)["linf", 0.1].certified.method == "crown"


def test_the_page_has_a_bracket_for_every_model(tmp_path, evaluation):
    paths = [
        save(tmp_path / f"{name}.json", evaluation(COUNTS, target=name, certified=[proof(right)]))
        for name, right in (("first/model", 60), ("second/model", 90))
    ]
    html = page([*paths, save(tmp_path / "plain.json", evaluation(COUNTS, target="third/model"))])
    section = html[html.index('aria-labelledby="certified"') : html.index('aria-labelledby="radius"')]
    section = section[: section.index("</section>")]
    values = re.findall(r'class="value">([\d.]+)<', section)
    assert values == ["30.0", "55.0", "90.0", "45.0", "55.0", "90.0"]
    assert "certified&nbsp;≤&nbsp;true&nbsp;≤&nbsp;attacked" in section and "third" not in section.lower()
    assert section.count("<svg") >= 1 and "crown" in section
    # The bars are as high as the gaps: two rectangles with fills, one 25 and one 10 points of 100.
    corner = r"[\d.]+ ([\d.]+)\s*L [\d.]+ [\d.]+\s*"
    heights = [abs(float(a) - float(b)) for a, b in re.findall(rf"M {corner}L {corner}z", section)]
    bars = sorted(h for h in heights if h > 1)
    assert abs(bars[-1] / bars[-2] - 2.5) < 0.05


def test_a_page_without_certificates_has_no_such_section(tmp_path, evaluation):
    assert "Certified accuracy" not in page([save(tmp_path / "plain.json", evaluation(COUNTS))])
