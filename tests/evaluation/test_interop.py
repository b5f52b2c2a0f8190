"""With other projects: Lightning, transformers' outputs, data loaders, RobustBench's form."""

import math
import sys
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from equipoise.attacks import Chain, apgd_t, fab, pgd, square
from equipoise.core.errors import EquipoiseError
from equipoise.evaluation import evaluate, evaluate_batches, suite
from equipoise.evaluation.interop import attackbench, lightning_callback, robustbench
from equipoise.results.records import AttackRecord, Evaluation, Provenance, ResultWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the import of a project that is not this one
    pl = pytest.importorskip("pytorch_lightning")

EPS = 0.1
PAIR = suite(["apgd-ce5", "pgd5"], [EPS])
CHAIN = Chain((("apgd-t", apgd_t(EPS, steps=5)), ("fab-t", fab(EPS, steps=5)), ("square", square(EPS, queries=30))))
EVERY = [*PAIR, ("chain", CHAIN)]


def data(n: int = 70) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (n,), generator=generator)
    x = torch.full((n, 3, 2, 2), 0.4) + 0.2 * nn.functional.one_hot(y, 3)[:, :, None, None]
    return (x + 0.2 * torch.rand(x.shape, generator=generator)).clamp(0, 1), y


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 3))


def loader(shuffle: bool = False) -> DataLoader:
    return DataLoader(TensorDataset(*data()), batch_size=32, shuffle=shuffle)  # 32, 32 and 6


class Lit(pl.LightningModule):
    """Somebody else's training, which knows nothing of attacks."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.seen: list[dict[str, float]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch, _) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _) -> None:
        assert not torch.is_grad_enabled()  # why the callback does not work here
        self.log("valid", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.02)


class Watch(pl.Callback):
    """What had been logged after each epoch, and the modes then."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.modes: list[set[bool]] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.modes.append({m.training for m in pl_module.modules()})

    on_train_end = on_train_epoch_start


DATA = loader()
NOISE = (
    ".*does not have many workers",
    ".*smaller than the logging interval",
    "You defined a `validation_step` but have no",
    ".*treespec, LeafSpec",  # its call of torch, not ours
)


def train(*callbacks, lit: type[Lit] = Lit, valid=DATA) -> tuple[Lit, Watch]:
    """Two epochs."""
    watch = Watch()
    with warnings.catch_warnings(), torch.random.fork_rng():
        for message in NOISE:
            warnings.filterwarnings("ignore", message)
        torch.manual_seed(1)
        model = lit()
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, watch],
        )
        trainer.fit(model, loader(shuffle=True), valid)
    return model, watch


def test_lightning_logs_what_evaluate_measures():
    lit, watch = train(lightning_callback(PAIR, batches=2, seed=3))
    x, y = data()
    clean, *results = evaluate(lit, x[:64], y[:64], PAIR, seed=3, batch_size=32)
    expected = {"robust_accuracy/clean": clean.accuracy} | {
        f"robust_accuracy/{r.attack}/0.1": r.accuracy for r in results
    }
    last = watch.logged[-1]
    assert expected.keys() == last.keys() - {"valid"} and len(expected) == 4
    for key, value in expected.items():
        assert math.isclose(last[key], value, abs_tol=1e-6)
    assert last["robust_accuracy/worst case/0.1"] < last["robust_accuracy/clean"]  # or it would show nothing
    assert watch.modes == [{True}] * 3


def test_lightning_trains_to_the_same_weights_with_and_without():
    plain, evaluated = train()[0], train(lightning_callback(PAIR, batches=3))[0]
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), evaluated.state_dict().values(), strict=True)
    )


def test_lightning_evaluates_every_so_many_epochs():
    _, watch = train(lightning_callback(PAIR[:1], every=2, name="apgd"))
    assert ["apgd/clean" in logged for logged in watch.logged] == [False, False, True]


@pytest.mark.parametrize("several", [lambda a, b: [a, b], lambda a, b: {"a": a, "b": b}], ids=["list", "dict"])
def test_lightning_takes_the_first_of_several_loaders(several):
    x, y = data()
    wrong = DataLoader(TensorDataset(x, (y + 1) % 3), batch_size=32)

    class Two(Lit):
        def validation_step(self, batch, _, dataloader_idx: int = 0) -> None:
            pass

    found = []
    for first, second in ((loader(), wrong), (wrong, loader())):
        model, watch = train(lightning_callback([], batches=3), lit=Two, valid=several(first, second))
        found.append(watch.logged[-1]["robust_accuracy/clean"])
        assert math.isclose(found[-1], evaluate_batches(model, first, [])[0].accuracy, abs_tol=1e-6)
    assert found[0] != found[1]


def test_refuses_lightning_callbacks_that_cannot_work(monkeypatch):
    with pytest.raises(EquipoiseError, match="every = 0"):
        lightning_callback(PAIR, every=0)
    with pytest.raises(EquipoiseError, match="batches = 0"):
        lightning_callback(PAIR, batches=0)
    both = [*suite(["pgd5"], [EPS]), *suite(["pgd5"], [EPS], "l2")]
    with pytest.raises(EquipoiseError, match=r"pgd5/0\.1: give one of them another name"):
        lightning_callback(both)
    for package in ("pytorch_lightning", "lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EquipoiseError, match="pip install pytorch-lightning"):
        lightning_callback(PAIR)


def test_refuses_to_train_where_lightning_has_no_validation_data():
    with pytest.raises(EquipoiseError, match="validation data: give the trainer a loader"):
        train(lightning_callback(PAIR), valid=None)


def test_evaluates_inside_inference_mode():
    x, y = data()
    expected = outcomes(evaluate(net(), x, y, PAIR))
    with torch.inference_mode():
        assert outcomes(evaluate(net(), x, y, PAIR)) == expected
        assert len(evaluate_batches(net(), loader(), PAIR)[-1].correct) == len(x)
    with torch.no_grad():
        assert outcomes(evaluate(net(), x, y, PAIR)) == expected


def outcomes(results: list[AttackRecord]) -> list[tuple]:
    return [(r.attack, r.correct, r.distance, r.prediction, r.winner, r.iteration, r.queries) for r in results]


def test_a_loader_gives_what_the_tensors_give():
    """Also in its last, smaller batch."""
    (x, y), model = data(), net()
    streamed = evaluate_batches(model, loader(), EVERY, seed=2)
    assert outcomes(streamed) == outcomes(evaluate(model, x, y, EVERY, seed=2, batch_size=32))
    assert streamed[0].n == 70 and 0 < streamed[-1].accuracy < 1


def test_a_loader_is_read_batch_by_batch():
    steps = []

    def stream():
        for number, batch in enumerate(loader()):
            steps.append(f"read {number}")
            yield batch

    evaluate_batches(net(), stream(), PAIR[:1], progress=lambda what, done, total: steps.append(f"{what} {done}"))
    assert [s for s in steps if s.startswith("read") or s.startswith("clean")] == [
        *("read 0", "clean 0", "clean 0"),
        *("read 1", "clean 32", "clean 32"),
        *("read 2", "clean 64", "clean 64"),
    ]


@dataclass
class Output:
    """As models of the transformers library return."""

    loss: Tensor | None
    logits: Tensor


class Classifier(nn.Module):
    """A model that returns an object with `.logits`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.inner(pixel_values)
        return Output(None if labels is None else cross_entropy(logits, labels), logits)


def test_a_model_that_returns_an_object_with_logits_is_attacked_as_its_logits():
    x, y = data()
    wrapped = evaluate(Classifier(net()), x[:24], y[:24], EVERY)
    assert outcomes(wrapped) == outcomes(evaluate(net(), x[:24], y[:24], EVERY))


def record(*results: AttackRecord, flags=()) -> Evaluation:
    made = Provenance("equipoise evaluate", 5, {}, None, "cpu", 1, "")
    return Evaluation("net", {"name": "toy"}, results, made, flags=flags, model={"sha256": "ab"})


def right(n: int) -> list[bool]:
    return [True] * n + [False] * (8 - n)


def test_a_result_in_the_form_of_robustbench():
    clean = AttackRecord("clean", "l2", 0.0, right(7))
    near = [AttackRecord("autoattack", "l2", 0.5, right(4)), AttackRecord("fgsm", "l2", 0.5, right(6))]
    worst, far = AttackRecord("worst case", "l2", 0.5, right(3)), AttackRecord("autoattack", "l2", 1.0, right(1))
    entry = robustbench(record(clean, *near, worst, far))
    assert entry == {
        "name": "net",
        "dataset": "toy",
        "threat_model": "L2",
        "eps": 0.5,
        "n_examples": 8,
        "clean_acc": "87.50",
        "external": "37.50",
        "attacks": ["autoattack", "fgsm"],
        "unreliable": False,
        "seed": 5,
        "weights_sha256": "ab",
        "autoattack_acc": "50.00",
    }
    doubtful = robustbench(record(clean, near[1], flags=[ResultWarning("a", "b", "c")]))
    assert doubtful["unreliable"] and "autoattack_acc" not in doubtful and doubtful["external"] == "75.00"


def test_refuses_a_robustbench_entry_without_an_attack():
    with pytest.raises(EquipoiseError, match="needs an attack"):
        robustbench(record(AttackRecord("clean", "linf", 0.0, right(7))))


class Counting(nn.Module):
    """As AttackBench's wrapper: it counts the queries of a network, and answers zeros once they are used up."""

    def __init__(self, net: nn.Module, limit: int = 10**6) -> None:
        super().__init__()
        self.net, self.limit, self.forwards, self.backwards = net, limit, 0, 0
        net.register_full_backward_hook(self.count)

    def count(self, *_: object) -> None:
        self.backwards += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        return self.net(x) if self.forwards < self.limit else 0 * self.net(x)


def test_attackbench_sees_every_query_and_gets_the_points():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.rand(6, 1, 3, 4)
    y, attack = net(x).argmax(1), pgd(0.3, steps=7)
    expected = attack(net, x, y).x
    model = Counting(net).eval()
    points = attackbench(attack)(model=model, inputs=x, labels=y)
    assert torch.allclose(points, expected, atol=1e-5)
    assert model.backwards >= 7 and model.forwards > model.backwards
    targets = (y + 1) % 4
    reached = attackbench(attack)(model=model, inputs=x, labels=y, targets=targets, targeted=True)
    assert torch.allclose(reached, attack(net, x, y, target=targets).x, atol=1e-5)
    assert all(weight.grad is None and weight.requires_grad for weight in net.parameters())
    with pytest.raises(EquipoiseError, match="targeted = True needs targets"):
        attackbench(attack)(model, x, y, targeted=True)
