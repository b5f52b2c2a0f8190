"""Estimate how long every experiment takes on one core of this machine, and keep it beside the code."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from equipoise import reproduce
from equipoise.reproduce import cost
from equipoise.reproduce.overview import KEPT, Listed, Overview
from equipoise.results.provenance import provenance


def main() -> None:
    found = {}
    for name in reproduce.names():
        experiment = reproduce.experiment(name)
        plans = {variant: experiment.plan(1.0, variant) for variant in ("corrected", "as published")}
        works = {variant: cost.work(plan.tasks()) for variant, plan in plans.items()}
        found[name] = Listed(
            experiment.title,
            experiment.source,
            list(plans["corrected"].datasets()),
            {variant: round(work.seconds) for variant, work in works.items()},
            {variant: round(work.chain) for variant, work in works.items()},
        )
        print(name, found[name].seconds)
    every = [task for name in reproduce.names() for task in reproduce.experiment(name).plan().tasks()]
    rates = {words: float(f"{rate:.3g}") for words, rate in cost.all_rates(every).items()}
    text = json.dumps(asdict(Overview(provenance(0, "cpu").device, found, rates)), indent=1) + "\n"
    Path(os.fspath(reproduce.__path__[0]), KEPT).write_text(text)


if __name__ == "__main__":
    main()
