"""Evaluation: attacks on a set of samples, every success re-verified, and the records of the results.

results = evaluate(model, x, y, suite(["fgsm", "pgd"], eps=[4 / 255, 8 / 255]))
print(results[0].accuracy, results[-1].interval)
"""

from equipoise.core.deprecation import renamed_names
from equipoise.core.documentation import show_attributes
from equipoise.evaluation.confirm import Verified, predict, verify_outcome
from equipoise.evaluation.corrupted import Corruptions, on_corruptions
from equipoise.evaluation.evaluate import Block, Progress, evaluate, evaluate_batches, evaluate_block
from equipoise.evaluation.journal import read_points
from equipoise.evaluation.proofs import on_balls
from equipoise.evaluation.runs import affordable_examples, evaluate_dataset, evaluate_run, radii
from equipoise.evaluation.samples import samples
from equipoise.evaluation.shards import WHOLE, Shard, merge
from equipoise.evaluation.suites import PUBLISHED, AttackLike, Suite, suite
from equipoise.evaluation.summaries import WORST, joined, result_warnings, with_worst_cases
from equipoise.evaluation.verification import Verification, fingerprint, verify_record
from equipoise.masking.model_checks import check_model
from equipoise.masking.result_checks import check_results

__all__ = [
    "PUBLISHED",
    "WHOLE",
    "WORST",
    "AttackLike",
    "Block",
    "Corruptions",
    "Progress",
    "Shard",
    "Suite",
    "Verification",
    "Verified",
    "affordable_examples",
    "check_model",
    "check_results",
    "evaluate",
    "evaluate_batches",
    "evaluate_block",
    "evaluate_dataset",
    "evaluate_run",
    "fingerprint",
    "joined",
    "merge",
    "on_balls",
    "on_corruptions",
    "predict",
    "radii",
    "read_points",
    "result_warnings",
    "samples",
    "suite",
    "verify_outcome",
    "verify_record",
    "with_worst_cases",
]

__getattr__ = renamed_names(
    __name__,
    {
        "Audit": "Verification",
        "assess": "evaluate_dataset",
        "audit": "verify_record",
        "cautions": "result_warnings",
        "judge": "check_results",
        "probe": "check_model",
    },
)

show_attributes(__name__)
