"""Functions, classifiers of scikit-learn and ONNX files as models: what they say is what the model predicts."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from equipoise import attacks
from equipoise.core.errors import EquipoiseError, NoGradient
from equipoise.evaluation import evaluate, fingerprint
from equipoise.models import BlackBox, as_predictive, from_callable, from_estimator, from_onnx, predict
from equipoise.testing.attacks import small_network, small_samples

pytestmark = pytest.mark.unchecked
NET = small_network()
X, Y = small_samples(NET, 12)


def scores(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return NET(torch.from_numpy(x)).numpy()


def probabilities(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(scores(x)).softmax(1).numpy()


def labels(x: np.ndarray) -> np.ndarray:
    return scores(x).argmax(1)


@pytest.mark.parametrize(
    ("function", "outputs", "answers"),
    [(scores, "logits", "scores"), (probabilities, "probabilities", "scores"), (labels, "labels", "labels")],
)
def test_what_a_function_returns_is_seen(function, outputs, answers):
    model = from_callable(function, X, classes=5)
    assert (model.outputs, model.answers, as_predictive(model)) == (outputs, answers, model)
    assert torch.equal(predict(model, X).labels, Y)
    if outputs == "probabilities":
        assert torch.allclose(predict(model, X).log_probs.exp(), torch.from_numpy(probabilities(X.numpy())), atol=1e-6)


def test_one_number_is_the_score_of_the_second_of_two_classes():
    for function, share in (
        (lambda x: scores(x)[:, 0], torch.from_numpy(scores(X.numpy())[:, 0]).sigmoid()),
        (lambda x: probabilities(x)[:, :1], torch.from_numpy(probabilities(X.numpy())[:, 0])),
    ):
        found = predict(from_callable(function, X), X).log_probs.exp()[:, 1]
        assert torch.allclose(found, share, atol=1e-6)


def test_square_asks_a_function_as_it_asks_its_network():
    """No gradient, no window and no kernel: the answers alone lead to the same points."""
    square = attacks.square(0.1, queries=30)
    asked, network = square(BlackBox(scores, 5), X, Y), square(NET, X, Y)
    assert torch.allclose(asked.x, network.x, atol=1e-6) and torch.equal(asked.success, network.success)
    assert torch.equal(asked.evaluations, network.evaluations) and bool(asked.success.any())


@pytest.mark.parametrize(
    ("attack", "needs"),
    [
        (attacks.pgd(0.1), "pgd|ascent"),
        (attacks.ddn(), "ddn"),
        (attacks.minimal_l2(), "bisected"),
        (attacks.autoattack(0.1), "chain needs gradients for apgd-ce, apgd-t, fab-t"),
    ],
)
def test_attacks_by_gradients_refuse_it_and_name_those_that_apply(attack, needs):
    with pytest.raises(NoGradient, match=rf"({needs}).*gives scores alone\. Attacks that apply: square, hop-skip-jump"):
        attack(BlackBox(scores, 5), X, Y)


def test_square_refuses_labels_alone():
    model = BlackBox(labels, 5, "labels")
    with pytest.raises(EquipoiseError, match=r"square needs scores, and BlackBox\(labels, labels\) gives labels alone"):
        attacks.square(0.1)(model, X, Y)
    transferred = attacks.transfer(NET, attacks.pgd(0.1, steps=5), "its own network")
    assert torch.equal(transferred(model, X, Y).success, transferred(NET, X, Y).success)


def test_an_evaluation_counts_the_queries_of_each_sample():
    suite = {"square": attacks.square(0.1, queries=30), "hop": attacks.hop_skip_jump(0.3, queries=60)}
    clean, square, hop = evaluate(BlackBox(scores, 5), X, Y, suite)[:3]
    assert clean.accuracy == 1 and max(square.queries) <= 36 and 0 < max(hop.queries) <= 66
    assert hop.evaluations == sum(hop.queries) - hop.n


def test_records_tell_functions_apart():
    models = BlackBox(scores, 5), BlackBox(labels, 5, "labels"), BlackBox(lambda x: scores(x), 5)
    assert len({fingerprint(model)["sha256"] for model in models}) == 3
    assert fingerprint(BlackBox(scores, 5)) == fingerprint(models[0]) and fingerprint(models[1])["answers"] == "labels"


@pytest.mark.parametrize(
    ("estimator", "method"),
    [
        (LogisticRegression(), "predict_proba"),
        (DecisionTreeClassifier(max_depth=4, random_state=0), "predict_proba"),
        (SVC(), "decision_function"),
        (Perceptron(), "decision_function"),
    ],
)
def test_classifiers_of_scikit_learn(estimator, method):
    rows = np.random.default_rng(0).random((60, 6)).astype(np.float32)
    targets = np.array([0, 1, 3])[rows[:, :3].argmax(1)]
    estimator.fit(rows, targets)
    model = from_estimator(estimator, 5)
    found = predict(model, torch.from_numpy(rows))
    assert torch.equal(found.labels, torch.from_numpy(estimator.predict(rows))) and found.classes == 5
    assert model.outputs == ("probabilities" if method == "predict_proba" else "logits")
    assert fingerprint(model) != fingerprint(from_estimator(type(estimator)().fit(rows[:40], targets[:40]), 5))


def test_named_labels_are_numbered_in_their_order():
    rows = np.random.default_rng(0).random((40, 4)).astype(np.float32)
    names = np.array(["cat", "dog"])[(rows[:, 0] > 0.5).astype(int)]
    classifier = SVC().fit(rows, names)
    found = predict(from_estimator(classifier), torch.from_numpy(rows)).labels
    assert (np.array(["cat", "dog"])[found.numpy()] == classifier.predict(rows)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: BlackBox(scores, 4),
            r"scores returned an array of shape \(2, 5\) and float32: expected",
        ),
        (lambda: BlackBox(lambda x: labels(x) + 9, 5, "labels"), r"returned label 1[0-9]: expected 0 to 4"),
        (
            lambda: BlackBox(lambda x: scores(x)[:1], 5),
            r"returned an array of shape \(1, 5\).* for 2 inputs",
        ),
        (lambda: from_callable(labels, X), r"labels returns labels: say of how many classes, with classes=10"),
        (
            lambda: from_callable(lambda x: scores(x)[:, 0], X, 5),
            r"which is for 2 classes, not 5",
        ),
        (
            lambda: from_callable(lambda x: None, X),
            r"returned an array of shape \(\) and object",
        ),
        (lambda: from_estimator(SVC()), r"SVC has no classes_, .*: give a fitted classifier"),
        (lambda: as_predictive(scores), r"is not a model: .* by models.from_callable\(function, x, classes=10\)"),
        (lambda: as_predictive(SVC()), r"is not a model: .* by models.from_estimator\(classifier\)"),
        (
            lambda: from_callable(lambda x: x.reshape(7, 3), X),
            r"failed on an array of shape .*: ValueError: cannot reshape",
        ),
        (lambda: from_onnx("none.onnx", X), r"none.onnx cannot be read: No such file"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(EquipoiseError, match=message):
        attacks.random_search(0.1, draws=2)(make(), X, Y)


def test_onnx_with_channels_last_and_a_fixed_batch(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["z"])],
        "linear",
        [helper.make_tensor_value_info("x", floats, [5, 4, 4, 2])],
        [helper.make_tensor_value_info("z", floats, [5, 5])],
        [helper.make_tensor("w", floats, weight.shape, weight.flatten())],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(tmp_path / "m.onnx")
    )
    model = from_onnx(tmp_path / "m.onnx", X)
    expected = torch.from_numpy(X.numpy().transpose(0, 2, 3, 1).reshape(12, -1) @ weight)
    assert torch.allclose(predict(model, X).logits[0], expected, atol=1e-5)
    with pytest.raises(EquipoiseError, match=r"takes inputs of shape \(4, 4, 2\), the data have \(3, 4, 4\)"):
        from_onnx(tmp_path / "m.onnx", torch.zeros(2, 3, 4, 4))
