"""Estimate how long every experiment takes on one core of this machine, and keep it beside the code."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from equipoise import reproduce, results
from equipoise.reproduce import cost
from equipoise.results.costs import KEPT, Listed, Overview
from equipoise.results.provenance import provenance


def main() -> None:
    listed = {}
    for name in reproduce.names():
        experiment = reproduce.experiment(name)
        plans = {variant: experiment.plan(1.0, variant) for variant in ("corrected", "as published")}
        works = {variant: cost.work(plan.tasks()) for variant, plan in plans.items()}
        listed[name] = Listed(
            experiment.title,
            experiment.source,
            list(plans["corrected"].datasets()),
            {variant: round(work.seconds) for variant, work in works.items()},
            {variant: round(work.chain) for variant, work in works.items()},
        )
        print(name, listed[name].seconds)
    tasks = [task for name in reproduce.names() for task in reproduce.experiment(name).plan().tasks()]
    rates = {net: float(f"{rate:.3g}") for net, rate in cost.all_rates(tasks).items()}
    text = json.dumps(asdict(Overview(provenance(0, "cpu").device, listed, rates)), indent=1) + "\n"
    Path(os.fspath(results.__path__[0]), KEPT).write_text(text)


if __name__ == "__main__":
    main()
