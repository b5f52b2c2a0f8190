"""Honest evaluation: attacks over a set of samples, every success checked again, and the records of it.

results = evaluate(model, x, y, suite(["fgsm", "pgd"], eps=[4 / 255, 8 / 255]))
print(results[0].accuracy, results[-1].interval)
"""

from equipoise.evaluation.evaluate import WORST, Progress, cautions, evaluate
from equipoise.evaluation.runs import affordable_examples, assess, evaluate_run, radii
from equipoise.evaluation.samples import samples
from equipoise.evaluation.suites import Attack, Suite, suite
from equipoise.evaluation.verify import Verified, predict, verify_outcome

__all__ = [
    "WORST",
    "Attack",
    "Progress",
    "Suite",
    "Verified",
    "affordable_examples",
    "assess",
    "cautions",
    "evaluate",
    "evaluate_run",
    "predict",
    "radii",
    "samples",
    "suite",
    "verify_outcome",
]
