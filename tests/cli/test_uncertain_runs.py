"""Runs of ensembles, of dropout and in latent spaces, from the command line to the checked record."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from equipoise.cli import main
from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset
from equipoise.models import DeepKernelGP, Ensemble, MonteCarloDropout
from equipoise.results.records import Run, load
from equipoise.training import load_run

pytestmark = pytest.mark.unchecked

DROPOUT = """
from torch import nn

def make(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, classes))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_dropout.py").write_text(DROPOUT)
    return tmp_path


def train(*words: object, method: str = "udp") -> int:
    usual = {"--eps": 0.1, "--steps": 3, "--epochs": 2, "--examples": 200, "--evaluate-examples": 0, "--out": "r"}
    own = [word for flag, value in usual.items() if flag not in words for word in (flag, value)]
    return main([str(w) for w in ("train", method, *own, *words)])


def checked_by_verify(capsys) -> str:
    words = "evaluate r --attacks pgd5 apgd-ce10 --eps 0.1 --examples 20 --batch-size 8 --out e.json"
    assert main(words.split()) == 0
    assert main(["verify", "e.json"]) == 0
    return capsys.readouterr().out


def test_an_ensemble_that_climbs_its_disagreement(here, capsys):
    assert train("--uncertainty", "mutual_information", "--members", 3) == 0
    assert "3 x mlp" in capsys.readouterr().out
    model, run = load_run("r")
    assert isinstance(model, Ensemble) and len(model) == 3 and run.net["members"] == 3
    assert run.method["uncertainty"] == "mutual_information"
    assert "mutual information" in run.method["sum"] and "each cross-entropy" in run.method["sum"]
    assert "apgd-ce10" in checked_by_verify(capsys)


def test_an_ensemble_trained_together(here):
    assert train("--members", 2, "--joint-loss") == 0
    _, run = load_run("r")
    assert "each" not in run.method["sum"]


def test_dropout_is_sampled_and_its_record_holds(here, capsys):
    assert train("--net", "own_dropout:make", "--dropout-samples", 4) == 0
    model, _ = load_run("r")
    assert isinstance(model, MonteCarloDropout) and model.samples == 4
    assert "flag: randomised model" in checked_by_verify(capsys)


def test_what_dropout_descends_is_a_choice_that_the_record_tells(here):
    losses = {}
    for choice in ("loss-of-mean", "mean-of-losses"):
        words = ("--net", "own_dropout:make", "--dropout-samples", 4, "--dropout-loss", choice, "--overwrite")
        assert train(*words, "--epochs", 1) == 0
        _, run = load_run("r")
        assert ("each cross-entropy" in run.method["sum"]) == (choice == "mean-of-losses")
        losses[choice] = json.loads(Path("r/metrics.jsonl").read_text())["train_loss"]
    assert losses["mean-of-losses"] > losses["loss-of-mean"], "Jensen: the logarithm is concave"


def test_gaussian_processes_on_features(here, capsys):
    assert train("--net", "fc-resnet", "--gp-inducing-points", 12, "--net-option", "features=16", "--lr", 0.02) == 0
    model, run = load_run("r")
    assert isinstance(model, DeepKernelGP) and len(model.module.gp.inducing) == 12 and run.net["inducing"] == 12
    assert "each cross-entropy" in run.method["sum"] and "KL(q||p)/180" in run.method["sum"], "a tenth is held out"
    assert "pgd5" in checked_by_verify(capsys)


def test_a_gaussian_process_starts_without_the_samples_held_out(here, monkeypatch):
    """From the samples that `fit` then trains on, whatever the seed and the share."""
    started, trained = [], []
    start, split = DeepKernelGP.start_from, Dataset.split_validation

    def splits(data, size, seed=0):
        trained.append(split(data, size, seed)[0].x)
        return split(data, size, seed)

    monkeypatch.setattr(Dataset, "split_validation", splits)
    monkeypatch.setattr(DeepKernelGP, "start_from", lambda model, x, seed: (started.append(x), start(model, x, seed)))
    words = [
        "--net",
        "fc-resnet",
        "--gp-inducing-points",
        5,
        "--net-option",
        "features=8",
        "--seed",
        3,
        "--validation",
        0.3,
    ]
    assert train(*words, "--epochs", 1) == 0
    assert len(started[0]) == 140 and torch.equal(started[0], trained[-1])
    assert "KL(q||p)/140" in load_run("r")[1].method["sum"]


def test_a_factory_may_return_an_ensemble(here, capsys):
    (here / "own_ensemble.py").write_text(
        "from equipoise import nets\nfrom equipoise.models import Ensemble\n"
        "def make(shape, members=2):\n"
        "    return Ensemble([nets.build('mlp', shape, 10, seed=s) for s in range(members)])\n"
    )
    words = "evaluate own_ensemble:make --net-option members=3 --data digits --attacks pgd5 --eps 0.1 --out e.json"
    assert main([*words.split(), "--examples", "20"]) == 0
    assert main(["verify", "e.json"]) == 0


def test_a_latent_run_is_evaluated_in_the_input(here, capsys):
    assert train("--latent", "fc1", "--members", 2, method="ls-udp") == 0
    run = load(here / "r" / "run.json")
    assert isinstance(run, Run) and run.method["latent"] == "fc1"
    assert run.method["terms"][0]["at"]["space"]["layer"] == "fc1"
    model, _ = load_run("r")
    assert isinstance(model, Ensemble)
    assert "pgd" in checked_by_verify(capsys)


def test_a_killed_run_of_an_ensemble_resumes_to_the_same_weights(here, monkeypatch):
    """Interrupted in the second epoch, then continued."""
    assert train("--members", 2) == 0
    whole, _ = load_run("r", "last")
    monkeypatch.chdir(here)
    (here / "r").rename(here / "whole")
    from equipoise.cli.display import TrainingProgress

    seen = TrainingProgress.__call__

    def stop(self, now):
        if now.epoch == 2:
            raise KeyboardInterrupt
        return seen(self, now)

    monkeypatch.setattr(TrainingProgress, "__call__", stop)
    assert train("--members", 2) == 130
    monkeypatch.setattr(TrainingProgress, "__call__", seen)
    assert train("--members", 2, "--resume") == 0
    again, _ = load_run("r", "last")
    assert isinstance(whole, Ensemble) and isinstance(again, Ensemble)
    for p, q in zip(whole.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("words", "method", "message"),
    [
        (["--joint-loss"], "udp", "--joint-loss needs --members"),
        (["--dropout-loss", "mean-of-losses"], "udp", "--dropout-loss needs --dropout-samples"),
        (["--members", "0"], "udp", "members = 0: expected an integer >= 1"),
        (["--members", "2", "--dropout-samples", "2"], "udp", "exclude each other: choose one of them"),
        (["--dropout-samples", "-1"], "udp", "--dropout-samples = -1"),
        (["--dropout-samples", "2"], "udp", "has no dropout layer"),
        (["--net", "fc-resnet"], "udp", "returns features, not logits: ask for inducing points"),
        (
            ["--gp-inducing-points", "5"],
            "udp",
            "need a network that returns features, fc-resnet or wide-resnet-features",
        ),
        (["--gp-inducing-points", "5", "--members", "2"], "udp", "exclude each other"),
        (["--uncertainty", "mutual_information"], "udp", "compares members, the model has 1"),
        (["--latent", "fc7"], "ls-udp", "unknown layer 'fc7'"),
        (["--latent", "logits"], "ls-pgd", "no classifier is left"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(words, method, message, here, capsys):
    assert train(*words, method=method) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and len(err.splitlines()) == 1
    assert not (here / "r" / "last.safetensors").exists()


def test_a_network_that_is_no_ensemble_is_refused(here):
    with pytest.raises(EquipoiseError, match=r"a str is no member"):
        Ensemble([nn.Linear(2, 2), "x"])
