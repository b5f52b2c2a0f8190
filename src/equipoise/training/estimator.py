"""Robust training as a scikit-learn estimator, for pipelines and searches."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from equipoise import nets
from equipoise.core.errors import require, unknown
from equipoise.data import Dataset, Split
from equipoise.training import methods
from equipoise.training.fit import fit
from equipoise.training.recipe import Recipe


class RobustClassifier(ClassifierMixin, BaseEstimator):
    """A network trained by any method of equipoise, as a scikit-learn classifier.

    Each feature is scaled to [0, 1] by its minimum and maximum in the training data, so that `eps` is a share of its
    range; all of a fit's random choices follow from `random_state`. A tenth of the samples is held out to watch the
    training. After `fit`, `network_` is the network, which takes scaled features, `run_` the record of the training,
    and `scale(X)` what the network sees: `eq.evaluate(clf.network_, clf.scale(X), y, attacks)`.
    """

    def __init__(
        self,
        method: Any = "udp",
        *,
        eps: float = 0.05,
        method_options: Mapping[str, Any] | None = None,
        net: str = "mlp",
        net_options: Mapping[str, Any] | None = None,
        shape: tuple[int, ...] | None = None,
        epochs: int = 50,
        batch_size: int = 64,
        lr: float = 0.01,
        random_state: Any = 0,
    ) -> None:
        """Store the parameters, which `fit` checks.

        Args:
            method: name of a function in `equipoise.methods`, or a method, term or objective, such as
                `cross_entropy @ pgd(0.1)`.
            eps: radius in the scaled features, for methods that have one and are given by name.
            method_options: further arguments of the method.
            net: network of `equipoise.nets`.
            net_options: its arguments, such as `{"widths": (64,)}`.
            shape: shape of a sample, such as (1, 8, 8), where rows are images and the network is convolutional.
            epochs: passes over the data.
            batch_size: samples per step.
            lr: learning rate of Adam.
            random_state: seed, a `RandomState`, or None for another one at each fit.
        """
        self.method = method
        self.eps = eps
        self.method_options = method_options
        self.net = net
        self.net_options = net_options
        self.shape = shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "RobustClassifier":
        """Train on features of shape (samples, features) and their classes; return the estimator itself."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        n, classes = len(X), len(self.classes_)
        require(classes > 1, "the labels are of one class: a classifier needs at least two.")
        require(n > classes, f"n_samples = {n} of {classes} classes leave none to watch the training by: give more.")
        self.low_, high = X.min(0), X.max(0)
        self.range_ = np.where(high > self.low_, high - self.low_, 1.0)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        split = Split(self.scale(X), torch.from_numpy(labels.astype(np.int64)))
        held_out = min(max(round(0.1 * n), 1), n - classes)
        recipe = Recipe(self.epochs, self.batch_size, lr=self.lr, validation=held_out / n, valid_steps=1, seed=seed)
        names = tuple(map(str, range(classes)))
        options = dict(self.net_options or {})
        network = nets.build(self.net, tuple(split.x.shape[1:]), classes, seed=seed, **options)
        self.run_ = fit(self._method(), network, Dataset("features", split, split, names, ""), recipe)
        self.network_ = network.cpu().eval()
        return self

    def scale(self, X: Any) -> torch.Tensor:
        """Return features as the network takes them: float32, in [0, 1] where they lie within the training data."""
        scaled = (np.asarray(X, np.float64) - self.low_) / self.range_
        return torch.from_numpy(scaled).float().reshape(len(scaled), *(self.shape or scaled.shape[1:]))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, of shape (samples, classes)."""
        check_is_fitted(self)
        x = self.scale(validate_data(self, X, reset=False, dtype=np.float64))
        network = deepcopy(self.network_).double()  # in float32 the last digits depend on the batch
        with torch.no_grad():
            return torch.cat([network(batch.double()).softmax(1) for batch in x.split(1024)]).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each sample."""
        most_probable = self.predict_proba(X).argmax(1)
        return self.classes_[most_probable]

    def _method(self) -> Any:
        if not isinstance(self.method, str):
            return self.method
        if self.method not in methods.__all__:
            raise unknown("method", self.method, methods.__all__)
        options = dict(self.method_options or {})
        return getattr(methods, self.method)(**({} if self.method == "standard" else {"eps": self.eps}), **options)
