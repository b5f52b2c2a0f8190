"""The models that come with the package are what their records say."""

import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

import equipoise as eq
from equipoise.cli import main
from equipoise.cli.parsing import parse
from equipoise.cli.requests import Train
from equipoise.pretrained import EVALUATION, WEIGHTS, find, names, read
from equipoise.results.records import digest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import models

DIGITS = [name for name in names() if name.startswith("digits/")]
ROOT = Path(models.PACKAGE)


@pytest.fixture(scope="module")
def digits():
    return eq.data.load("digits")


@pytest.fixture
def copied(tmp_path):
    """A model in a folder of its own, and a function that writes its record anew."""
    folder = Path(shutil.copytree(find("digits/udp-0.15"), tmp_path / "model"))

    def change(edit):
        record = json.loads(gzip.decompress((folder / EVALUATION).read_bytes()))
        edit(record)
        (folder / EVALUATION).write_bytes(gzip.compress(json.dumps(record).encode()))

    return folder, change


def test_the_models_for_digits_are_there():
    assert (
        {"digits/standard", "digits/udp-0.15", "digits/ibp-0.1"}
        <= set(DIGITS)
        == {name for name in models.MODELS if name.startswith("digits/")}
    )


def test_all_of_them_are_small():
    assert sum(file.stat().st_size for file in ROOT.rglob("*") if file.is_file()) < 10e6


@pytest.mark.parametrize("name", DIGITS)
def test_the_recorded_predictions_are_those_of_the_weights(name, digits):
    model, (_, (w1, b1), (w2, b2)) = read(name), _layers(name)
    x, y = digits.test.x.flatten(1).double().numpy(), digits.test.y.numpy()
    predicted = (np.maximum(x @ w1.T + b1, 0) @ w2.T + b2).argmax(1)
    assert np.array_equal(predicted, model.clean.prediction)
    assert model.clean.accuracy == (predicted == y).mean() and model.clean.n == len(y) == 359


def _layers(name):
    tensors = load_file(find(name) / WEIGHTS)
    layers = sorted({re.sub(r"(weight|bias)$", "", key) for key in tensors})
    return len(layers), *((tensors[f"{at}weight"].astype(float), tensors[f"{at}bias"].astype(float)) for at in layers)


@pytest.mark.parametrize("name", DIGITS)
def test_autoattack_left_no_more_than_pgd_does(name, digits):
    net, _ = eq.load(name)
    (attacked,) = read(name).attacked
    assert (attacked.attack, attacked.norm, attacked.eps) == ("autoattack", "linf", 0.1)
    pgd = eq.attacks.pgd(eps=0.1, steps=40)
    _, result = eq.evaluate(net, digits.test.x, digits.test.y, [("pgd", pgd)])
    assert attacked.accuracy <= result.accuracy + 0.003  # one sample of 359


def test_what_is_certified_withstood_autoattack(digits):
    net, _ = eq.load("digits/ibp-0.1")
    (attacked,) = read("digits/ibp-0.1").attacked
    certified = eq.certify(net, digits.test.x, digits.test.y, eq.Ball("linf", 0.1), method="crown").numpy()
    assert certified.mean() > 0.3 and np.asarray(attacked.correct)[certified].all()


@pytest.mark.parametrize("name", names())
def test_records_and_cards_agree_and_name_no_places(name):
    model, folder = read(name), find(name)
    content = json.loads(gzip.decompress((folder / EVALUATION).read_bytes()))
    card = (folder / "README.md").read_text()
    assert model.name == name and content["digest"] == digest(model.evaluation) and content["digest"] in card
    for text in ((folder / "run.json").read_text(), json.dumps(content)):
        assert not re.search(r'"/|data-root|/tmp|/home', text)
    _, front, _ = card.split("---\n", 2)
    (entry,) = yaml.safe_load(front)["model-index"]
    values = [metric["value"] for metric in entry["results"][0]["metrics"]]
    accuracies = [model.clean.accuracy, *(result.accuracy for result in model.attacked)]
    assert values == [round(100 * accuracy, 2) for accuracy in accuracies]


@pytest.mark.parametrize("name", [name for name in names() if name in models.MODELS])
def test_they_were_trained_as_the_table_says(name):
    run = read(name).run
    assert run.words == models.MODELS[name].words(name.split("/")[0]) and run.status == "finished"


@pytest.mark.parametrize("name", models.MODELS)
def test_the_table_can_be_typed(name):
    options = parse(["train", *models.MODELS[name].words(name.split("/")[0])])
    assert isinstance(options, Train) and options.data == name.split("/")[0]


def test_the_page_is_that_of_the_records():
    assert models.PAGE.read_text() == models.page()
    assert [f"| `{name}` |" in models.page() for name in names()] == [True] * len(names())


def test_a_name_that_is_none_gets_the_nearest():
    with pytest.raises(eq.EquipoiseError, match=r"digits/upd-0\.15 is not a run .*come with equipoise: digits/udp"):
        eq.load("digits/upd-0.15")
    with pytest.raises(eq.EquipoiseError, match=r"nowhere is not a run directory: it has no run\.json\.$"):
        eq.load("nowhere")
    with pytest.raises(eq.EquipoiseError, match=r"digits/standard has one set of weights: leave out 'last'"):
        eq.load("digits/standard", "last")


def test_a_folder_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits/standard").mkdir(parents=True)
    with pytest.raises(eq.EquipoiseError, match="digits/standard is not a run directory"):
        eq.load("digits/standard")


def test_other_weights_are_refused(copied):
    folder, _ = copied
    eq.load(folder)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(eq.EquipoiseError, match=r"model\.safetensors is not the file that .* names"):
        eq.load(folder)


def test_verify_takes_a_name_and_a_folder(copied, capsys):
    folder, _ = copied
    for given in ("digits/udp-0.15", str(folder)):
        assert main(["verify", given]) == 0
        assert f"{given} holds: its weights, and 359 claims" in capsys.readouterr().out


def _other_prediction(record):
    record["results"][0]["prediction"][0] += 1


def _higher_accuracy(record):
    record["results"][1]["accuracy"] += 0.01


def _more_correct(record):
    outcomes = record["results"][1]["correct"]
    outcomes[outcomes.index(False)] = True


@pytest.mark.parametrize("edit", [_other_prediction, _higher_accuracy, _more_correct])
def test_verify_finds_an_edited_record(copied, edit, capsys):
    folder, change = copied
    change(edit)
    assert main(["verify", str(folder)]) == 2
    assert "does not hold" in capsys.readouterr().err


def test_a_truncated_record_is_refused(copied):
    folder, _ = copied
    file = folder / EVALUATION
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(eq.EquipoiseError, match=r"evaluation\.json\.gz is not JSON"):
        read(folder)


def test_a_loaded_network_is_in_eval_mode_with_float32_weights():
    net, run = eq.load("digits/udp-0.15")
    assert isinstance(net, torch.nn.Module) and not net.training and run.method["eps"] == 0.15
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
