import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from equipoise.core.errors import EquipoiseError
from equipoise.report import report
from equipoise.report.accuracy import significance_marks
from equipoise.report.chains import descent, stages
from equipoise.report.pages import duration, radius, value
from equipoise.results.records import AttackRecord, ResultWarning, load, save

pytestmark = pytest.mark.unchecked

SHA = "0123456789abcdef" * 4
WINNERS = ["clean", "fast", "fast", "fast", "slow", "slow", None, None, None, None]
ITERATIONS = [0, 1, 3, 8, 10, 20, None, None, None, None]
QUERIES = [1, 4, 6, 100, 300, 501, 1000, 1000, 1000, 1000]
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
    (body,) = next(page.all("div", class_="results")).all("tbody")
    rows = []
    for row in body.all("tr"):
        cells = []
        for cell in row.all("td"):
            parts = [next(cell.all(class_=name), None) for name in ("mark", "value", "range")]
            cells.append(" ".join(part.text for part in parts if part is not None))
        rows.append((next(row.all(class_="name")).text, cells))
    return rows


def test_the_page_is_whole_accessible_and_needs_nothing_else(three_runs, tmp_path):
    out = report(three_runs, tmp_path / "new" / "report.html")
    assert out == tmp_path / "new" / "report.html"
    page, source = parse(out), out.read_text(encoding="utf-8")
    assert next(page.all("html")).attributes["lang"] == "en"
    assert next(page.all("title")).text == "Robustness report: Standard, PGD-AT, UDP"
    assert len(list(page.all("h1"))) == 1
    assert all(th.attributes.get("scope") in ("col", "row", "colgroup") for th in page.all("th"))
    assert all(next(t.all("caption"), None) for t in page.all("table"))
    assert all(image.attributes["alt"] for image in page.all("img"))
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    targets = [
        node.attributes[a] for node in page.all() for a in ("href", "src", "aria-labelledby") if a in node.attributes
    ]
    assert len(targets) > 20
    for target in targets:
        assert target.startswith("data:image/png;base64,") or target.removeprefix("#") in ids, target
    for outside in ("http:", "https:", "//cdn", "@import", "<script", "<link"):
        assert outside not in source
    assert set(re.findall(r"url\(.", source)) <= {"url(#"}
    assert out.stat().st_size < 1_000_000


def test_every_number_of_the_table_follows_from_the_records(three_runs, tmp_path):
    rows = table(parse(report(three_runs, tmp_path / "r.html")))
    assert [name for name, _ in rows] == ["Standard", "PGD-AT", "UDP"]
    raw = [json.loads((run / "evaluation.json").read_bytes())["results"] for run in three_runs]
    for (_, cells), results in zip(rows, raw, strict=True):
        assert len(cells) == len(results)
        for cell, result in zip(cells, results, strict=True):
            k, n = sum(result["correct"]), len(result["correct"])
            low, high = binomtest(k, n).proportion_ci(method="wilson")
            assert cell.endswith(f"{100 * k / n:.1f} {100 * low:.1f}–{100 * high:.1f}")


def test_the_best_is_marked_and_what_overlaps_it_does_not_differ_significantly(three_runs, tmp_path):
    page = parse(report(three_runs, tmp_path / "r.html"))
    marks = [[cell[0] if cell[0] in "★≈" else "" for cell in cells] for _, cells in table(page)]
    assert marks == [["★", "", "", "", ""], ["≈", "★", "★", "★", "★"], ["≈", "≈", "≈", "≈", ""]]
    lede = next(page.all("p", class_="lede")).text
    assert "Standard, PGD-AT and UDP were evaluated on digits (test split), n = 200 samples." in lede
    assert "At L∞, ε = 0.1, the best robust accuracy, in the worst case over the attacks, is 79.0 %" in lede
    assert "by PGD-AT. The interval of UDP overlaps it: the two do not differ significantly." in lede
    assert (
        "The best trade-off, the mean of clean and robust accuracy, is 87.0 %, by PGD-AT (95.0 % clean, 79.0 % robust)."
        in lede
    )
    assert [figure.text for figure in page.all(class_="figure")] == ["79.0%", "87.0%", "98.0%"]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6))
def test_significance_marks_follow_the_intervals(rights):
    results = [AttackRecord("pgd", "linf", 0.1, [i < right for i in range(50)]) for right in rights]
    low = max(binomtest(right, 50).proportion_ci(method="wilson").low for right in rights)
    for right, mark in zip(rights, significance_marks(results), strict=True):
        overlaps = binomtest(right, 50).proportion_ci(method="wilson").high >= low
        assert mark == ("best" if right == max(rights) else "tied" if overlaps else "")


def test_nothing_is_called_best_alone(run_directory, tmp_path):
    page = parse(
        report([run_directory("udp", {("clean", "linf", 0.0): 190, ("pgd", "linf", 0.1): 100})], tmp_path / "r.html")
    )
    assert table(page) == [("UDP", ["95.0 91.0–97.3", "50.0 43.1–56.9"])]
    lede = next(page.all("p", class_="lede")).text
    assert "UDP was evaluated" in lede
    assert "robust accuracy, under PGD, is 50.0 %" in lede
    assert "best" not in lede


def test_best_and_last_weights_are_two_rows(run_directory, evaluation, tmp_path):
    run = run_directory("udp", {("clean", "linf", 0.0): 190})
    save(run / "evaluation-last.json", evaluation({("clean", "linf", 0.0): 180}, weights="last"))
    page = parse(report([run], tmp_path / "r.html"))
    assert [cells[0].split()[0] for _, cells in table(page)] == ["95.0", "90.0"]  # and no mark: they are not compared
    assert [pill.text for pill in next(page.all("tbody")).all(class_="pill")] == ["best weights", "last weights"]


def test_the_summary_does_not_choose_between_a_runs_weights_by_test_accuracy(run_directory, evaluation, tmp_path):
    run = run_directory("udp", {("clean", "linf", 0.0): 180})
    save(run / "evaluation-last.json", evaluation({("clean", "linf", 0.0): 190}, weights="last"))
    page = parse(report([run], tmp_path / "r.html"))
    assert [figure.text for figure in page.all(class_="figure")] == ["90.0%"]


def test_the_marks_of_the_table_follow_the_rule_of_the_summary(run_directory, evaluation, tmp_path):
    """The last weights of a run are better on the test data, which must not choose between them and the best ones."""
    attacked = ("pgd", "linf", 0.1)
    run = run_directory("udp", {("clean", "linf", 0.0): 180, attacked: 150})
    save(run / "evaluation-last.json", evaluation({("clean", "linf", 0.0): 190, attacked: 170}, weights="last"))
    other = run_directory("pgd", {("clean", "linf", 0.0): 150, attacked: 140})
    own = save(
        tmp_path / "own.json",
        evaluation({("clean", "linf", 0.0): 185, attacked: 120}, target="nets:make", weights="given"),
    )
    page = parse(report([run, other, own], tmp_path / "r.html"))
    rows = table(page)
    marks = [[cell[0] if cell[0] in "★≈" else "" for cell in cells] for _, cells in rows]
    assert marks == [["≈", "★"], ["", ""], ["", "≈"], ["★", ""]]
    assert [figure.text for figure in page.all(class_="figure")] == ["75.0%", "82.5%", "92.5%"]
    assert "Last weights are shown beside the best ones and not compared" in page.text
    starred = {cell[2:6] for _, cells in rows for cell in cells if cell.startswith("★")}
    assert starred == {"75.0", "92.5"}


def lede(path: Path) -> str:
    return " ".join(next(parse(path).all("p", class_="lede")).text.split())


PGD = {"steps": {"kind": "Fixed", "most": 40}, "restarts": 5}


@pytest.mark.parametrize(
    ("results", "attacks", "cautions"),
    [
        ([("pgd", PGD)], "Attack: PGD (40 steps, 5 starts), on n = 1000 samples.", ["It rests on PGD alone"]),
        (
            [("fgsm", {"steps": {"most": 1}, "restarts": 1}), ("pgd", PGD)],
            "Attacks: FGSM (1 step, 1 start), PGD (40 steps, 5 starts), on n = 1000 samples.",
            ["It rests on FGSM and PGD alone"],
        ),
        (
            [("pgd", PGD), ("autoattack", {"parts": [{"name": "apgd-ce"}, {"name": "square"}]})],
            "Attacks: PGD (40 steps, 5 starts), AutoAttack, on n = 1000 samples.",
            [],
        ),
        ([("square", {"queries": 5000})], "Attack: Square (5,000 queries), on n =", ["It rests on Square alone"]),
    ],
)
def test_the_headline_says_what_it_rests_on(results, attacks, cautions, run_directory, evaluation, tmp_path):
    run = run_directory("udp", None)
    made = [AttackRecord(name, "linf", 0.1, [i < 700 for i in range(1000)], settings=s) for name, s in results]
    save(run / "evaluation.json", evaluation({}, results=made))
    said = lede(report([run], tmp_path / "r.html"))
    assert attacks in said
    assert said.count("Caution:") == len(cautions) and all(caution in said for caution in cautions)


@pytest.mark.parametrize(("n", "remarked"), [(42, True), (200, True), (1000, False)])
def test_few_samples_are_remarked(n, remarked, run_directory, evaluation, tmp_path):
    run = run_directory("udp", None)
    save(run / "evaluation.json", evaluation({("autoattack", "linf", 0.1): n * 3 // 5}, n=n))
    said = lede(report([run], tmp_path / "r.html"))
    assert (f"It rests on n = {n} samples, and its interval is" in said) == remarked
    assert ("evaluate on more, such as --examples 1000" in said) == remarked


def test_no_more_samples_are_asked_for_than_there_are(run_directory, evaluation, tmp_path):
    run = run_directory("udp", None)
    made = evaluation({("autoattack", "linf", 0.1): 30}, n=42)
    save(run / "evaluation.json", evaluation({("autoattack", "linf", 0.1): 30}, n=42, data=made.data | {"n_test": 42}))
    said = lede(report([run], tmp_path / "r.html"))
    assert "points wide, all that the test set has." in said and "evaluate on more" not in said


def test_example_images_say_within_which_radius_they_were_perturbed(run_directory, tmp_path):
    run = run_directory("udp", {("pgd", "linf", 8 / 255): 100})
    with np.load(run / "samples.npz") as file:
        arrays = dict(file)
    arrays |= {"judged": arrays["pgd"], "judged_prediction": arrays["pgd_prediction"], "else_prediction": np.zeros(3)}
    for kind, eps in (("judged", 8 / 255), ("udp", 0.3), ("pgd", 0.3)):
        arrays |= {f"{kind}_norm": np.array("linf"), f"{kind}_eps": np.array(eps)}
    np.savez(run / "samples.npz", **arrays)
    page = parse(report([run], tmp_path / "r.html"))
    heads = [next(row.all("th")).text for row in next(page.all("table", class_="images")).all("tr")][1:]
    assert [" ".join(head.split()) for head in heads] == [
        "Clean",
        "PGD as judgedL∞, ε = 8/255",
        "UDPL∞, ε = 0.3",
        "PGDL∞, ε = 0.3",
    ]


def test_evaluations_of_one_model_share_a_row_unless_they_repeat_an_attack(run_directory, evaluation, tmp_path):
    run = run_directory("udp", {("clean", "linf", 0.0): 190})
    save(run / "evaluation-more.json", evaluation({("pgd", "l2", 1.0): 100}))
    assert table(parse(report([run], tmp_path / "r.html"))) == [("UDP", ["95.0 91.0–97.3", "50.0 43.1–56.9"])]
    save(run / "evaluation-same.json", evaluation({("clean", "linf", 0.0): 190, ("pgd", "l2", 1.0): 100}))
    assert len(table(parse(report([run], tmp_path / "r.html")))) == 1
    save(run / "evaluation-z.json", evaluation({("pgd", "l2", 1.0): 90}))
    page = parse(report([run], tmp_path / "r.html"))
    assert [cells[1][:6] for _, cells in table(page)] == ["★ 50.0", "≈ 45.0"]
    names = [next(row.all("th")).text for row in next(page.all("tbody")).all("tr")]
    assert ["evaluation-z.json" in name for name in names] == [False, True]
    assert "evaluation-more.json" in names[0]


def test_loose_evaluations_join_their_run_and_other_data_gets_its_own_table(run_directory, evaluation, tmp_path):
    run = run_directory("udp", None)
    own = save(tmp_path / "own.json", evaluation({("clean", "linf", 0.0): 190}, target=str(run)))
    other = {"name": "letters", "sha256": "cd", "split": "test"}
    foreign = save(tmp_path / "foreign.json", evaluation({("clean", "linf", 0.0): 20}, target="nets:make", data=other))
    page = parse(report([run, own, foreign], tmp_path / "r.html"))
    assert table(page)[0][0] == "UDP"
    assert len(list(page.all("div", class_="results"))) == 2
    assert "one table each" in next(page.all(class_="notes")).text


def test_runs_of_one_name_are_told_apart(run_directory, tmp_path):
    runs = [run_directory(name, {("clean", "linf", 0.0): 190}, method_name="udp") for name in ("a", "b")]
    assert [name for name, _ in table(parse(report(runs, tmp_path / "r.html")))] == ["UDP (a)", "UDP (b)"]


def test_text_from_outside_is_escaped(run_directory, evaluation, tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
    data = {"name": evil, "sha256": evil, "classes": [evil] * 3}
    method = {"name": evil, "terms": evil, evil: evil}
    run = run_directory(
        "evil", {("clean", "linf", 0.0): 190, (evil, evil, 0.1): 5}, method=method, data=data, alarms=[evil]
    )
    save(run / "evaluation-2.json", evaluation({("pgd", "l2", 0.1): 3}, target=evil, warnings=[evil], data=data))
    page = parse(report([run], tmp_path / "r.html"))
    assert not list(page.all("script"))
    assert all(image.attributes["src"].startswith("data:image/png") for image in page.all("img"))
    assert not [node for node in page.all() if any(name.startswith("on") for name in node.attributes)]
    assert evil in next(page.all("h3")).text or any(evil in heading.text for heading in page.all("h3"))
    assert any(evil in (image.attributes["alt"] or "") for image in page.all("img"))


def test_a_run_without_an_evaluation_is_shown_and_said_to_lack_one(run_directory, tmp_path):
    run = run_directory("udp", None, status="failed: the loss was NaN")
    page = parse(report([run], tmp_path / "r.html"))
    assert "No evaluation was found, so this report holds no test accuracy." in next(page.all("p", class_="lede")).text
    notes = next(page.all(class_="notes")).text
    assert f"no evaluation was found; make one with: equipoise evaluate {run}" in notes
    assert "its status is: failed: the loss was NaN" in notes
    assert not list(page.all("div", class_="results"))


def test_a_bare_run_directory_is_enough(run_directory, tmp_path):
    run = run_directory("udp", None)
    (run / "metrics.jsonl").unlink()
    (run / "samples.npz").unlink()
    text = parse(report([run], tmp_path / "r.html")).text
    assert "No metrics were found" in text
    assert "No example images were found" in text


def test_warnings_alarms_and_bad_gradients_come_before_the_numbers(run_directory, evaluation, tmp_path):
    run = run_directory("udp", None, alarms=["catastrophic overfitting from epoch 2"])
    bad = AttackRecord("pgd", "linf", 0.1, [True, False], nan_gradients=3, zero_gradients=1200)
    save(run / "evaluation.json", evaluation({}, results=[bad], warnings=["only two samples"]))
    notes = next(parse(report([run], tmp_path / "r.html")).all(class_="notes")).text
    for part in (
        "catastrophic overfitting from epoch 2",
        "only two samples",
        "3 of the attacks' gradients held a NaN",
        "1,200 of",
    ):
        assert part in notes


def test_a_column_run_with_different_settings_is_pointed_out(three_runs, tmp_path):
    path = three_runs[0] / "evaluation.json"
    path.write_text(path.read_text().replace('"steps": 20', '"steps": 5', 3))
    page = parse(report(three_runs, tmp_path / "r.html"))
    assert "PGD, L∞ 0.1: the rows of this column differ in steps" in next(page.all(class_="notes")).text


def test_provenance_is_there(three_runs, tmp_path):
    section = [s for s in parse(report(three_runs, tmp_path / "r.html")).all("section")][-1].text
    for part in (
        "equipoise train udp --seed 7",
        "0123abc",
        "torch 2.13.0",
        "a processor, 2 threads",
        "ab" * 32,
        "1 min 15 s",
        "2025-01-02T03:04:05Z",
    ):
        assert part in section


def test_images_are_the_arrays_pixel_for_pixel(three_runs, tmp_path):
    page = parse(report(three_runs[:1], tmp_path / "r.html"))
    grid = next(page.all("table", class_="images"))
    assert [th.text for th in grid.all("th")] == [
        "Image",
        "true classzero",
        "true classone",
        "true classtwo",
        "Clean",
        "UDP",
        "PGD",
    ]
    with np.load(three_runs[0] / "samples.npz") as arrays:
        expected = [np.rint(255 * image[0].astype(float)) for kind in ("clean", "udp", "pgd") for image in arrays[kind]]
    sources = [image.attributes["src"].partition(",")[2] for image in grid.all("img")]
    for source, pixels in zip(sources, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))), pixels)
    assert [next(cell.all(class_="verdict")).text for cell in grid.all("td", class_="wrong")] == ["✗ two"]
    assert next(grid.all(class_="size")).text == "L∞ 0.100"


def test_the_curves_are_drawn_to_scale_and_take_their_colours_from_the_page(three_runs, tmp_path):
    page = parse(report(three_runs, tmp_path / "r.html"))
    plot = next(page.all("div", class_="wide"))
    paths = [
        p.attributes
        for p in plot.all("path")
        if "var(--s1)" in p.attributes.get("style", "") and "fill: none" in p.attributes["style"]
    ]
    (line,) = [p for p in paths if "clip-path" not in p]
    x, y = np.array(re.findall(r"[ML] (\S+) (\S+)", line["d"]), dtype=float).T
    accuracy = np.array([190, 158, 90]) / 200
    assert x == pytest.approx(x[0] + (x[2] - x[0]) * np.array([0, 0.5, 1]), abs=1e-3)
    assert y == pytest.approx(y[0] + (y[2] - y[0]) * (accuracy - accuracy[0]) / (accuracy[2] - accuracy[0]), abs=1e-3)
    assert y[2] > y[0]
    for svg in page.all("svg"):
        assert not re.search(r"#[0-9a-f]{6}", " ".join(n.attributes.get("style", "") or "" for n in svg.all()))


def test_the_epoch_of_the_best_weights_is_named(three_runs, tmp_path):
    page = parse(report(three_runs, tmp_path / "r.html"))
    assert [t.text for t in page.all("text") if "best" in t.text] == ["best weights: epoch 2"] * 3
    assert len([th for th in page.all("th") if th.text == "2 (best)"]) == 3


def test_metrics_may_lack_keys_and_hold_nan(run_directory, tmp_path):
    run = run_directory("udp", None)
    (run / "metrics.jsonl").write_text(
        '{"epoch": 1, "train_loss": NaN}\n{"epoch": 2, "valid_pgd": 0.5, "train_loss": null}\n'
    )
    page = parse(report([run], tmp_path / "r.html"))
    cells = [cell.text for cell in next(s for s in page.all("section") if "Training" in s.text[:20]).all("td")]
    assert cells == ["–", "–", "–", "0.5"]


def test_a_last_line_cut_by_a_kill_is_ignored(run_directory, tmp_path):
    run = run_directory("udp", None)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"epoch": 4, "train_l')
    page = parse(report([run], tmp_path / "r.html"))
    assert len([th for th in page.all("th") if th.text in ("1", "2 (best)", "3", "4")]) == 3


def test_many_epochs_are_thinned_in_the_table_but_keep_best_and_last(run_directory, tmp_path):
    run = run_directory("udp", None, best={"epoch": 222})
    (run / "metrics.jsonl").write_text("".join(f'{{"epoch": {e}, "train_loss": {1 / e}}}\n' for e in range(1, 501)))
    page = parse(report([run], tmp_path / "r.html"))
    heads = [th.text for th in next(page.all("details")).all("th") if th.attributes["scope"] == "row"]
    assert len(heads) <= 43
    assert "222 (best)" in heads
    assert heads[-1] == "500"


def test_a_report_is_reproducible(three_runs, tmp_path):
    first, second = (report(three_runs, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def spoil(kind: str, run: Path) -> list[Path]:
    """Break one thing about a run directory; the paths to report on."""
    evaluation = run / "evaluation.json"
    match kind:
        case "nothing":
            return []
        case "missing":
            return [run / "nowhere"]
        case "no run":
            return [run.parent]
        case "run.json":
            return [run / "run.json"]
        case "text":
            (run / "run.json").write_text("hello")
        case "swapped":
            (run / "run.json").write_bytes(evaluation.read_bytes())
        case "method":
            edit(run / "run.json", method=3)
        case "seconds":
            edit(run / "run.json", seconds="long")
        case "cut evaluation":
            evaluation.write_bytes(evaluation.read_bytes()[:100])
        case "result":
            edit(evaluation, results=[1])
        case "empty result" | "radius":
            results = json.loads(evaluation.read_bytes())["results"]
            results[0].update({"correct": []} if kind == "empty result" else {"eps": "8/255"})
            edit(evaluation, results=results)
        case "target":
            edit(evaluation, target=None)
        case "metrics":
            (run / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch"\n{"epoch": 3}\n')
        case "samples":
            (run / "samples.npz").write_bytes((run / "samples.npz").read_bytes()[:200])
        case "shapes":
            np.savez(
                run / "samples.npz",
                clean=np.zeros((2, 1, 8, 8)),
                clean_prediction=np.zeros(3, int),
                labels=np.zeros(2, int),
            )
    return [run]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "needs at least one run directory, evaluation or score, got none"),
        ("missing", "nowhere does not exist; expected a run directory, an evaluation or a score"),
        ("no run", "runs is not a run directory: it has no run.json"),
        ("run.json", "run.json is a training run, expected an evaluation; give its directory instead"),
        ("text", "run.json is not JSON"),
        ("swapped", "run.json is no training run, expected one"),
        ("method", "run.json is damaged: method: expected table"),
        ("seconds", "run.json is damaged: seconds: expected number"),
        ("cut evaluation", "evaluation.json is not JSON"),
        ("result", "evaluation.json is damaged: results"),
        ("empty result", r"evaluation.json is damaged: results\[0\]: clean covers no samples"),
        ("radius", r"evaluation.json is damaged: results\[0\].eps: expected number"),
        ("target", "evaluation.json is damaged: target: expected text"),
        ("metrics", "line 2 of .*metrics.jsonl is not a JSON object"),
        ("samples", "cannot read .*samples.npz: it is not a whole .npz file"),
        ("shapes", "samples.npz does not hold images: expected clean, udp and pgd of one shape"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(kind, message, run_directory, tmp_path):
    paths = spoil(kind, run_directory("udp", {("clean", "linf", 0.0): 190}))
    out = tmp_path / "r.html"
    with pytest.raises(EquipoiseError, match=message) as caught:
        report(paths, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_an_unwritable_place_is_refused(three_runs, tmp_path):
    with pytest.raises(EquipoiseError, match=r"cannot write .*choose another place with --out"):
        report(three_runs[:1], three_runs[0] / "run.json" / "r.html")
    with pytest.raises(EquipoiseError, match=r"cannot write .*: Is a directory"):
        report(three_runs[:1], tmp_path)


def test_without_matplotlib_the_extra_is_named(three_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EquipoiseError, match=r"need matplotlib.*pip install 'equipoise\[report\]'"):
        report(three_runs, tmp_path / "r.html")


@given(st.integers(1, 254))
def test_a_radius_keeps_its_value(level):
    top, _, bottom = radius(level / 255).partition("/")
    assert float(top) / float(bottom or 1) == pytest.approx(level / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (0.1, "0.1"), (0.03, "0.03"), (0, "0"), (0.2, "0.2"), (1.5, "1.5")]
)
def test_a_radius_is_written_as_people_write_it(eps, text):
    assert radius(eps) == text


@pytest.mark.parametrize(
    ("changes", "radius_shown"),
    [
        ({"method": {"name": "udp", "eps": 0.1}}, "L∞, ε = 0.1"),
        ({"method": {"name": "udp", "eps": 0.1, "norm": "l2"}}, "L2, ε = 0.1"),
        ({"method": {"name": "standard"}, "recipe": {"valid_eps": 0.05}}, "L∞, ε = 0.05"),
        ({"method": {"name": "standard"}}, "L∞, ε = 0.2"),
    ],
)
def test_the_summary_speaks_of_the_radius_trained_for(changes, radius_shown, run_directory, tmp_path):
    counts = {("pgd", norm, eps): 100 for norm in ("l2", "linf") for eps in (0.05, 0.1, 0.2)}
    page = parse(report([run_directory("a", counts, **changes)], tmp_path / "r.html"))
    assert f"At {radius_shown}, robust accuracy" in next(page.all("p", class_="lede")).text


def test_the_terms_of_a_method_are_for_machines(run_directory, tmp_path):
    method = {"name": "udp", "sum": "ce @ climb", "eps": 0.1, "terms": [{"weight": 1.0, "objective": "unmistakable"}]}
    page = report([run_directory("a", {("pgd", "linf", 0.1): 100}, method=method)], tmp_path / "r.html").read_text()
    assert "ce @ climb" in page
    assert "unmistakable" not in page


def test_settings_are_written_out():
    settings = {
        "step_size": {"kind": "Constant", "size": 2 / 255},
        "return_point": "last",
        "box": {"low": 0.0},
        "resample": False,
    }
    assert value(settings) == "step size (Constant: size 2/255), return point last, box (low 0), resample no"
    assert [value(v) for v in (None, [], {}, [1, 2], "linf", {"kind": "Zero"})] == ["none"] * 3 + ["1, 2", "L∞", "Zero"]


@pytest.mark.parametrize(("seconds", "text"), [(1.26, "1.3 s"), (75, "1 min 15 s"), (3720, "1 h 2 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_an_evaluation_inside_a_given_run_is_not_read_twice(run_directory, tmp_path):
    run = run_directory("udp", {("clean", "linf", 0.0): 190})
    assert load(run / "evaluation.json")
    assert len(table(parse(report([run, run, run / "evaluation.json"], tmp_path / "r.html")))) == 1


def chain(eps=0.1, winner=WINNERS, **changes):
    """A composite attack of two parts on ten samples."""
    fields = {
        "correct": [w is None for w in winner],
        "winner": winner,
        "iteration": ITERATIONS,
        "queries": QUERIES,
        "settings": {"kind": "Chain", "parts": [{"name": "fast"}, {"name": "slow"}], "notes": ["slow: 2 targets"]},
    }
    return AttackRecord("autoattack", "linf", eps, **{**fields, **changes})


def audited(evaluation, *results, **changes):
    clean = AttackRecord("clean", "linf", 0.0, [False] + 9 * [True])
    fields = {"results": [clean, *results], "model": {"sha256": SHA, "parameters": 7}, "index": list(range(10))}
    return evaluation({}, **{**fields, **changes})


def section(path):
    """The section on audits; None if the page has none."""
    return next((s for s in parse(path).all("section") if s.attributes["aria-labelledby"] == "audit"), None)


def test_each_part_is_told_with_what_fell_to_it_and_what_it_left(evaluation, tmp_path):
    path = save(tmp_path / "e.json", audited(evaluation, chain(0.2), chain(0.1)))
    audit = section(report([path], tmp_path / "r.html"))
    (stages_,) = audit.all("table", class_="stages")
    rows = [[cell.text for cell in row.children if not isinstance(cell, str)] for row in stages_.all("tr")][1:]
    low, high = binomtest(4, 10).proportion_ci(method="wilson")
    of_one = [
        ["Clean", "1", "90.0", "–", "–"],
        ["Fast", "3", "60.0", "3", "6"],
        ["Slow", "2", f"40.0{100 * low:.1f}–{100 * high:.1f}", "15", "400.5"],
    ]
    assert rows == [["ε = 0.1"], *of_one, ["ε = 0.2"], *of_one]
    assert next(stages_.all("caption")).text == "AutoAttack, L∞, part by part. slow: 2 targets"
    assert all(th.attributes["scope"] in ("col", "row", "rowgroup") for th in stages_.all("th"))


@given(st.lists(st.sampled_from(["clean", "fast", "slow", None]), min_size=1, max_size=30))
def test_the_last_part_leaves_the_accuracy_of_the_attack(winners):
    result = chain(winner=winners, iteration=[None if w is None else 2 for w in winners], queries=())
    found = stages(result)
    assert sum(stage.fooled for stage in found) == sum(w is not None for w in winners)
    assert found[-1].accuracy == result.accuracy
    assert found[-1].interval == result.interval
    assert found[0].remaining == sum(w != "clean" for w in winners)
    assert {stage.queries for stage in found} == {None}


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), min_size=1, max_size=30))
def test_the_curve_is_the_share_that_has_not_fallen_by_then(samples):
    right, queries = zip(*samples, strict=True)
    found = descent(chain(correct=list(right), queries=list(queries), winner=[], iteration=[]))
    assert found is not None
    places, left = found
    assert places == sorted(places)
    assert (places[0], places[-1]) == (1, max(queries))
    for at in {*places, *(place + 1 for place in places)}:
        expected = sum(r or q > at for r, q in samples) / len(samples)
        assert left[int(np.searchsorted(places, at, side="right")) - 1] == pytest.approx(expected)


def test_the_curve_is_drawn_to_scale(evaluation, tmp_path):
    path = save(tmp_path / "e.json", audited(evaluation, chain()))
    audit = section(report([path], tmp_path / "r.html"))
    (curve,) = [
        p.attributes["d"] for p in audit.all("path") if "fill: none; stroke: var(--ink)" in p.attributes["style"]
    ]
    x, y = np.array(re.findall(r"[ML] (\S+) (\S+)", curve), dtype=float).T
    ends = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    heights = np.unique(y)
    assert heights == pytest.approx(heights[0] + (heights[-1] - heights[0]) * (ends[0] - ends) / 0.5, abs=1e-3)
    steps = np.unique(x)
    places = np.log10([1, 4, 6, 100, 300, 501, 1000])
    assert steps == pytest.approx(steps[0] + (steps[-1] - steps[0]) * places / 3, abs=1e-3)
    corners = {(int(np.searchsorted(steps, a)), int(np.searchsorted(heights, b))) for a, b in zip(x, y, strict=True)}
    assert corners == {(0, 0), (6, 5)} | {(i, j) for i in range(1, 6) for j in (i - 1, i)}
    assert "0.1" in [text.text for text in audit.all("text")]


def test_flags_on_disk_are_not_refused_and_stand_before_the_numbers_of_their_model(evaluation, tmp_path):
    flag = ResultWarning("randomised model", "logits change by up to 0.4", "average over draws")
    path = save(tmp_path / "e.json", audited(evaluation, chain(), flags=[flag]))
    page = parse(report([path], tmp_path / "r.html"))
    audit = section(tmp_path / "r.html")
    (box,) = audit.all("div", class_="flags")
    assert box.text == (
        "Warnings about these numbers Randomised model: logits change by up to 0.4. What to do: average over draws."
    )
    assert "No flags raised" not in audit.text
    assert audit.text.index("Warnings about") < audit.text.index("AutoAttack")
    assert "listed under Audit: randomised model" in next(page.all(class_="notes")).text


def test_without_flags_one_line_says_so(evaluation, tmp_path):
    path = save(tmp_path / "e.json", audited(evaluation, chain()))
    audit = section(report([path], tmp_path / "r.html"))
    assert [p.text for p in audit.all("p") if "lag" in p.text] == ["No flags raised."]
    assert not list(audit.all(class_="flags"))


def test_records_without_the_audit_have_no_such_section(three_runs, evaluation, tmp_path):
    out = report(three_runs, tmp_path / "r.html")
    assert section(out) is None
    assert "No flags raised" not in out.read_text()
    old = save(tmp_path / "old.json", evaluation({("clean", "linf", 0.0): 190}))
    data = json.loads(old.read_bytes())
    for name in ("flags", "model", "index", "images"):
        del data[name]
    for result in data["results"]:
        for name in ("winner", "iteration", "queries"):
            del result[name]
    old.write_text(json.dumps(data))
    assert table(parse(report([old], tmp_path / "r.html")))[0][1] == ["95.0 91.0–97.3"]


@pytest.mark.parametrize(
    ("changes", "expected", "absent"),
    [
        ({"images": {"file": "e 1.images.npz", "sha256": "ab"}}, "Images stored in e 1.images.npz", "--images"),
        ({}, "No adversarial images stored", "equipoise verify"),
        ({"data": {"name": "digits", "n": 40, "shard": "2/4"}}, "10 samples, shard 2/4 of 40", "equipoise verify"),
    ],
)
def test_what_the_numbers_are_about_is_said(changes, expected, absent, evaluation, tmp_path):
    path = save(tmp_path / "e 1.json", audited(evaluation, chain(), **changes))
    text = section(report([path], tmp_path / "r.html")).text
    assert "Weights SHA-256 0123456789ab " in text
    assert "10 samples" in text
    assert expected in text
    assert absent not in text
    if "images" in changes:
        assert f"equipoise verify '{path}'" in text


def test_shards_are_not_compared_and_are_said_to_be_parts(evaluation, tmp_path):
    paths = [
        save(tmp_path / f"{i}.json", audited(evaluation, chain(), data={"name": "digits", "n": 20, "shard": f"{i}/2"}))
        for i in (1, 2)
    ]
    page = parse(report(paths, tmp_path / "r.html"))
    assert len(list(page.all("div", class_="results"))) == 2
    assert "shard 2/2 alone; join all shards with: equipoise merge" in next(page.all(class_="notes")).text


def test_any_text_of_flags_and_parts_is_escaped_not_refused(evaluation, tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
    settings = {"parts": [{"name": evil}, {"name": "slow"}], "notes": [evil]}
    result = chain(winner=["clean", *5 * [evil], None, None, None, None], settings=settings)
    result = AttackRecord(**{**vars(result), "attack": evil})
    changes = {"model": {"sha256": evil}, "images": {"file": evil}, "data": {"name": evil, "shard": evil, "n": evil}}
    path = save(tmp_path / "e.json", audited(evaluation, result, flags=[ResultWarning(evil, evil, evil)], **changes))
    page = parse(report([path], tmp_path / "r.html"))
    assert not list(page.all("script"))
    assert not list(page.all("img"))
    assert not [node for node in page.all() if any(name.startswith("on") for name in node.attributes)]
    assert next(page.all("div", class_="flags")).text.count(evil) == 3
    assert evil in next(page.all("table", class_="stages")).text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": [{"name": "a"}]}, r"e.json is damaged: flags\[0\]: it lacks the field figure"),
        ({"flags": 3}, "flags: expected list, got integer"),
        ({"flags": [{"name": 1, "figure": "", "advice": ""}]}, r"flags\[0\].name: expected text, got integer"),
        ({"model": 3}, "model: expected table, got integer"),
        ({"index": 3}, "index: expected list, got integer"),
    ],
)
def test_a_damaged_audit_is_refused(changes, message, evaluation, tmp_path):
    path = save(tmp_path / "e.json", audited(evaluation, chain()))
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))
    with pytest.raises(EquipoiseError, match=message):
        report([path], tmp_path / "r.html")


def test_many_attacks_go_down_the_page_and_models_across(run_directory, tmp_path):
    at = [("clean", "linf", 0.0)]
    at += [(name, "linf", eps) for eps in (0.1, 0.2, 0.3) for name in ("fgsm", "pgd", "worst case")]
    counts = {"standard": range(196, 96, -10), "udp": range(190, 190 - 50, -5)}
    runs = [run_directory(name, dict(zip(at, values, strict=True))) for name, values in counts.items()]
    (shown,) = parse(report(runs, tmp_path / "r.html")).all("div", class_="tall")
    assert [name.text for name in shown.all(class_="name")] == ["Standard", "UDP"]
    rows = [
        [c for c in row.children if not isinstance(c, str)] for body in shown.all("tbody") for row in body.all("tr")
    ]
    assert [row[0].text for row in rows if len(row) == 1] == ["L∞, ε = 0.1", "L∞, ε = 0.2", "L∞, ε = 0.3"]
    cells = [row for row in rows if len(row) == 3]
    assert [row[0].text for row in cells] == ["Clean", *3 * ["FGSM", "PGD", "Worst case"]]
    for row, *pair in zip(cells, *counts.values(), strict=True):
        assert [next(c.all(class_="value")).text for c in row[1:]] == [f"{100 * right / 200:.1f}" for right in pair]
        best = "★" if len(set(pair)) == 2 else "★★"
        assert "".join(m.text for c in row[1:] for m in c.all(class_="mark")).count("★") == len(best)
