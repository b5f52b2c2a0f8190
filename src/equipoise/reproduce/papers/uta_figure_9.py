"""T Fig 9: catastrophic overfitting on CIFAR-10, and clean accuracy after fast training."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import FAST_NOTES, FAST_QUIRKS, SEEDS, courses, fast_chart
from equipoise.reproduce.tasks import Call, Net, Training, call
from equipoise.training import Recipe, methods

_EPS = 8 / 255


def _trainings(method: Call, dropout_samples: int) -> list[Training]:
    net = Net("resnet18-dropout", dropout_samples=dropout_samples)
    return [
        Training(
            method,
            net,
            "cifar10",
            Recipe(
                epochs=200, batch_size=256, optimizer="sgd", lr=0.1, weight_decay=5e-4, schedule="multistep",
                milestones=(60 / 200, 120 / 200, 160 / 200), decay=1 / 15, augment="crop-flip", valid_eps=_EPS,
                valid_steps=10, valid_examples=5_000, seed=seed,
            ),
        )
        for seed in SEEDS
    ]  # fmt: skip


def _parts(variant: Variant) -> list[Part]:
    mode = {"mode": "train"} if variant == "as published" else {}
    uta = call(methods.uta, eps=_EPS, step_size=_EPS, steps=1, **mode)
    return [
        courses("(a) trained with FGSM", _trainings(call(methods.fgsm_at, eps=_EPS, **mode), 0), "PGD-10"),
        courses("(b) trained with UTA-1, one sampled model", _trainings(uta, 1), "PGD-10"),
        fast_chart("UTA", variant, robustness=False),
    ]


experiment = Experiment(
    "uta-figure-9",
    "CIFAR-10: accuracy while training with FGSM and one step of UTA, and clean accuracy after fast training",
    "T Fig 9",
    _parts,
    quirks=FAST_QUIRKS,
    notes="(a, b) 200 epochs of SGD with a learning rate of .1, divided by 15 after 60, 120 and 160 epochs, random "
    "crops and flips; batches of 256 and a weight decay of 5e-4 are U's. Accuracy is that on the 5,000 "
    "validation samples after every epoch, under PGD-10 with steps of eps/4. (c) " + FAST_NOTES,
)
