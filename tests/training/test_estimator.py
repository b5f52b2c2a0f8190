"""`RobustClassifier` is what scikit-learn calls an estimator, and what the library trains."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import equipoise as eq

pytestmark = [pytest.mark.unchecked, pytest.mark.filterwarnings("ignore")]
TINY = {"net_options": {"widths": (8,)}, "epochs": 1, "batch_size": 8, "lr": 0.1}


@parametrize_with_checks([eq.RobustClassifier("standard", **TINY)])
def test_scikit_learn_takes_it_for_a_classifier(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def blobs():
    return make_blobs(120, centers=[(-3, -3), (3, 3)], random_state=0)


def test_names_and_expressions_train_the_same(blobs):
    X, y = blobs
    named = eq.RobustClassifier("pgd_at", eps=0.1, method_options={"steps": 2}, **TINY).fit(X, y)
    spelled = eq.RobustClassifier(eq.methods.pgd_at(eps=0.1, steps=2), **TINY).fit(X, y)
    assert np.array_equal(named.predict_proba(X), spelled.predict_proba(X))
    assert named.run_.method["sum"] == spelled.run_.method["sum"] and "0.1" in named.run_.method["sum"]


def test_the_network_sees_scaled_features_and_can_be_attacked(blobs):
    X, y = blobs
    names = np.array(["left", "right"])[y]
    clf = make_pipeline(StandardScaler(), eq.RobustClassifier("udp", eps=0.1, **TINY)).fit(X, names)
    assert clf.score(X, names) > 0.95 and set(clf.predict(X)) == {"left", "right"}
    x = clf[-1].scale(clf[0].transform(X))
    assert float(x.min()) == 0 and float(x.max()) == 1
    clean, robust = eq.evaluate(clf[-1].network_, x, torch.from_numpy(y), [("pgd", eq.attacks.pgd(0.1, steps=3))])
    assert clean.accuracy == pytest.approx(clf.score(X, names)) and robust.accuracy > 0.8


def test_rows_become_images_for_a_convolutional_network():
    X = np.random.default_rng(0).random((24, 64))
    clf = eq.RobustClassifier("standard", net="small-cnn", shape=(1, 8, 8), epochs=1).fit(X, np.arange(24) % 2)
    assert clf.predict_proba(X).shape == (24, 2)


def test_refusals(blobs):
    X, y = blobs
    with pytest.raises(eq.EquipoiseError, match="unknown method 'pgd-at'"):
        eq.RobustClassifier("pgd-at").fit(X, y)
    with pytest.raises(eq.EquipoiseError, match="n_samples = 2 of 2 classes"):
        eq.RobustClassifier().fit(X[:2], [0, 1])
    with pytest.raises(eq.EquipoiseError, match="of one class"):
        eq.RobustClassifier().fit(X, np.zeros(len(X)))
