"""Attacks by their name on the command line, beside those of `test_evaluate` and `test_records_on_disk`."""

import json

import pytest
import torch
from torch import nn

from equipoise.attacks import (
    adaptive,
    apgd_fgsm,
    bg,
    cw_k,
    ddn,
    deepfool,
    fgsm_k,
    fmn,
    minimal_l2,
    nearest,
    pdpgd,
    pgd_k,
    pma,
    random_search,
    sigma_zero,
    transfer,
)
from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, Split
from equipoise.evaluation import evaluate, evaluate_dataset, fingerprint, suite, verify_record

pytestmark = pytest.mark.unchecked


def test_names_and_numbers():
    found = dict(suite(["random-search", "random-search5000", "adaptive", "adaptive7"], [0.1], "l2", precision="bf16"))
    assert found == {
        "random-search": random_search(0.1, "l2", 10_000, precision="bf16"),
        "random-search5000": random_search(0.1, "l2", 5000, precision="bf16"),
        "adaptive": adaptive(0.1, "l2", precision="bf16"),
        "adaptive7": adaptive(0.1, "l2", 7, precision="bf16"),
    }
    assert [a.geometry.eps for _, a in suite(["random-search9"], [0.3, 0.1])] == [0.1, 0.3]


def test_names_of_newer_papers():
    assert dict(suite(["pma", "pma40", "apgd-fgsm", "apgd-fgsm20"], [0.1], precision="bf16")) == {
        "pma": pma(0.1, precision="bf16"),
        "pma40": pma(0.1, steps=40, precision="bf16"),
        "apgd-fgsm": apgd_fgsm(0.1, "linf", precision="bf16"),
        "apgd-fgsm20": apgd_fgsm(0.1, "linf", 20, precision="bf16"),
    }
    assert dict(suite(["ddn", "ddn50", "pdpgd"], [0.5], "l2")) == {
        "ddn": ddn(0.5),
        "ddn50": ddn(0.5, steps=50),
        "pdpgd": pdpgd(0.5),
    }
    assert dict(suite(["sigma-zero", "sigma-zero100", "pdpgd"], [3], "l0")) == {
        "sigma-zero": sigma_zero(3),
        "sigma-zero100": sigma_zero(3, steps=100),
        "pdpgd": pdpgd(3, "l0"),
    }


def test_attacks_to_the_nearest_boundary():
    found = dict(suite(["bg", "deepfool", "deepfool20", "fmn30", "nearest"], [0.5], "l2"))
    assert found == {
        "bg": bg(0.5),
        "deepfool": deepfool(0.5),
        "deepfool20": deepfool(0.5, steps=20),
        "fmn30": fmn(0.5, steps=30),
        "nearest": nearest(eps=0.5),
    }
    net = nn.Linear(4, 2).requires_grad_(False)
    x = 0.3 + 0.4 * torch.rand(40, 4, generator=torch.Generator().manual_seed(1))
    net.weight.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
    net.bias.copy_(torch.tensor([0.0, -2.0]))
    margin = (x.sum(1) - 2).abs() / 2  # to the plane, in l2; the walls are farther
    results = evaluate(net, x, net(x).argmax(1), suite(["bg", "nearest", "fmn"], [0.1], "l2"))
    for result in results[1:]:
        assert result.correct == (margin > 0.1).tolist() and 0 < result.accuracy < 1, result.attack
    assert {"fgsm", "pgd", "bg", "deepfool", "fmn", None} >= set(results[2].winner) and len(set(results[2].winner)) > 1


def test_the_papers_names_bring_their_radius():
    found = suite(["pgd40-8", "pgd5", "cw20-16", "fgsm-4", "fgsm-4"], [0.1, 0.01])
    assert [name for name, _ in found] == ["pgd5", "fgsm-4", "pgd40-8", "cw20-16", "pgd5"]
    assert dict(found[1:4]) == {"pgd40-8": pgd_k(40, 8), "cw20-16": cw_k(20, 16), "fgsm-4": fgsm_k(4)}
    assert dict(suite(["pgd7-8"], [])) == {"pgd7-8": pgd_k(7, 8)}, "no other radius is needed"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["random-search0"], {}, "draws = 0: expected an integer"),
        (["random"], {}, "unknown attack 'random'"),
        (["random-serach"], {}, "unknown attack 'random-serach': did you mean 'random-search'"),
        (["random-search"], {"restarts": 2}, "restarts: not for random-search, whose budget is the published one"),
        (["adaptive", "pgd"], {"steps": 3}, "steps: not for adaptive, whose budget is the published one"),
        (["minimal-l2"], {}, "unknown attack 'minimal-l2'"),
        (["bg9"], {}, "attack 'bg9': bg has a budget of its own; leave the number out"),
        (["fmn"], {"precision": "bf16"}, "fmn looks for the boundary, which bf16 blurs"),
        (["nearest", "pgd"], {"restarts": 3}, "restarts: not for nearest"),
        (["pgd-8"], {}, "attack 'pgd-8': expected fgsm-K, pgdP-K or cwP-K"),
        (["fgsm3-8"], {}, "attack 'fgsm3-8': expected fgsm-K"),
        (["pgd40-8"], {"norm": "l2"}, "attack 'pgd40-8' is one in linf, not in l2: name it without its radius, pgd40"),
        (["pgd40-8"], {"steps": 3}, "steps: not for pgd40-8, whose budget is the published one"),
        ([f"pgd{'9' * 5000}"], {}, "unknown attack 'pgd999"),
        ([f"pgd{'9' * 5000}-8"], {}, "unknown attack 'pgd999"),
        (["sigma-zero"], {}, "norm = 'linf': a sparse ball counts changed features"),
        (["ddn"], {}, "ddn rescales perturbations in l2, not in linf"),
        (["pgd"], {"norm": "l0"}, "unknown norm 'l0'"),
        (["pdpgd"], {"norm": "l0"}, "eps = 0.1 in l0 is a number of features"),
        (["pgd40-0.5"], {}, "k = 0.5 is in units of 1/255"),
    ],
)
def test_what_is_refused(names, options, message):
    with pytest.raises(EquipoiseError, match=message):
        suite(names, [0.1], **options)


def test_they_evaluate_like_any_other():
    """Both are attacks on one ball: a worst case follows, and winners are the parts of the adaptive attack."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).requires_grad_(False).eval()
    x = torch.rand(40, 8, generator=torch.Generator().manual_seed(1))
    net[2].bias.sub_(net(x).mean(0))
    y = net(x).argmax(1)
    attacks = suite(["random-search200", "adaptive5"], [0.05])
    clean, search, adapted, worst = evaluate(net, x, y, attacks, seed=2, batch_size=13)
    assert clean.accuracy == 1 and search.accuracy > adapted.accuracy >= worst.accuracy > 0
    assert set(search.winner) == {None, "random-search200"} and {"g=0", None} <= set(adapted.winner)
    assert max(n for n in search.iteration if n) > 1 and max(search.queries) == 204
    beyond = evaluate(net, x, y, [("minimal-l2", minimal_l2())], seed=2)[1]
    near = [d is not None and d <= 0.05 for d in beyond.distance]
    assert all(not right for right, close in zip(worst.correct, near, strict=True) if close)


def test_their_records_stand_an_audit(tmp_path):
    """Also an infinite radius, and the proxy by name and weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, proxy = (nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).requires_grad_(False).eval() for _ in range(2))
    x = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    net[1].bias.sub_(net(x).mean(0))
    y = net(x).argmax(1)
    y[::6] = (y[::6] + 1) % 3
    data = Dataset("noise", Split(x, y), Split(x, y), tuple("abc"), sha256="5" * 64)
    sha = fingerprint(proxy)["sha256"]
    attacks = [
        *suite(["random-search50", "adaptive3", "bg", "nearest5"], [0.06]),
        *((f"{name} from proxy", transfer(proxy, one, "proxy", sha)) for name, one in suite(["pgd5"], [0.06])),
        ("minimal-l2", minimal_l2(steps=100)),
    ]
    out = tmp_path / "r.json"
    record = evaluate_dataset(net, data, attacks, target="net", examples=0, batch_size=9, out=out, images=True)
    assert all(0 < r.accuracy < 1 for r in record.results if r.attack.startswith(("adaptive", "pgd", "random")))
    found = verify_record(out, net, x, y)
    assert not found.mismatches and found.unchecked == 0 and found.claims > 24
    nearest_one = next(r for r in record.results if r.attack == "nearest5")
    assert nearest_one.settings["attack"] == "nearest" and nearest_one.accuracy < 1
    told = json.loads(out.read_text())
    settings = next(r for r in told["results"] if r["attack"] == "nearest5")["settings"]
    settings["parts"][2]["geometry"]["norm"] = "l2"
    out.write_text(json.dumps(told))
    assert verify_record(out, net, x, y).mismatches[1:] == ["nearest5, linf eps 0.06: its settings are of l2 eps inf."]
