"""What `evaluate` promises, for models and inputs drawn at random."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from torch import Tensor

from equipoise.attacks import apgd, fab, pgd, square
from equipoise.attacks.steps import Uniform
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.evaluation import Suite, evaluate
from equipoise.geometry import Box

sys.path.insert(0, str(Path(__file__).parent))

from odd_models import EXACT, MAY_BE_REFUSED, build
from test_fuzz_attacks import FEWER, Case, alone, cases, inputs, snapshot, surroundings

pytestmark = [pytest.mark.fuzz, pytest.mark.unchecked]


def suite_of(case: Case) -> Suite:
    box, norm = Box(*case.box), case.norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquipoiseWarning)
        return [
            ("pgd", pgd(case.eps, steps=3, norm=norm, box=box, start=Uniform(), return_point="first_success")),
            ("apgd", apgd(case.eps, norm, 5, box=box)),
            ("fab", fab(case.eps, norm, 4, targets=2, box=box)),
            ("square", square(case.eps, norm, 12, box=box)),
        ]


@given(case=cases)
@FEWER
def test_what_an_evaluation_promises(case: Case) -> None:
    model = build(case.kind, case.shape, case.classes, case.box, case.seed).to(case.dtype)
    x, attacks = inputs(case), suite_of(case)
    y = torch.randint(case.classes, (case.batch,), generator=torch.Generator().manual_seed(case.seed))
    if case.labels == "predicted" and case.kind not in ("a tuple", "one output", "half precision"):
        y = torch.stack([alone(model, x[i : i + 1]).argmax() for i in range(len(x))])
    was, world = snapshot(model), surroundings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquipoiseWarning)
        try:
            results = evaluate(model, x, y, attacks, seed=case.seed)
        except EquipoiseError as error:
            assert "\n" not in str(error) and str(error).endswith(".")
            assert case.kind in MAY_BE_REFUSED or case.kind == "NaN on some", f"needlessly refused: {error}"
            return
        finally:
            assert snapshot(model) == was and surroundings() == world
        assert [r.attack for r in results] == ["clean", "pgd", "apgd", "fab", "square", "worst case"]
        clean, *attacked, worst = ([bool(right) for right in result.correct] for result in results)
        assert all(result.n == case.batch for result in results)
        if case.kind in ("random", "coupled"):
            return
        for i in range(case.batch):
            z = alone(model, x[i : i + 1])
            valid = not z.isnan().any() and z.max() < torch.inf
            gap = z.topk(2).values.diff().abs()
            if not valid:
                assert not clean[i], "a prediction that is not finite is not right"
            elif gap > 1e-4 * z.abs().amax().clamp_max(1e6):
                assert clean[i] == (z.argmax() == y[i])
            assert all(clean[i] or not right[i] for right in attacked)
            assert worst[i] == all(right[i] for right in attacked)
        if case.kind in EXACT and case.batch > 1:
            check_batches(case, model, x, y, attacks, [result.correct for result in results])


def check_batches(case: Case, model: torch.nn.Module, x: Tensor, y: Tensor, attacks: Suite, known: list) -> None:
    """Neither the size of a batch nor its order matters."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(case.seed))
    again = evaluate(model, x[order], y[order], attacks, seed=case.seed, index=order, batch_size=2)
    for one, other in zip(known, again, strict=True):
        assert [one[int(i)] for i in order] == list(other.correct)
