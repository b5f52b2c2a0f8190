"""The card of a published model: YAML that a model hub reads, and the text that people read."""

import shlex
from typing import Any

import yaml

from equipoise.core.tables import as_markdown
from equipoise.pretrained.catalogue import EVALUATION, RECORD, WEIGHTS, PublishedModel
from equipoise.results.outcomes import ACCURACY, accuracy_cells
from equipoise.results.records import AttackRecord, digest

_RECIPE = ("epochs", "batch_size", "optimizer", "lr", "schedule", "weight_decay", "ema", "awp", "augment", "validation")
"""Settings of a training that a card names; `run.json` has them all."""


def card(model: PublishedModel, weights: str, licence: str) -> str:
    """Return the card, in Markdown. `weights` says which ones of the run these are, `best` or `last`."""
    header = yaml.safe_dump(_header(model, licence), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n{_text(model, weights)}"


def _header(model: PublishedModel, licence: str) -> dict[str, Any]:
    """The front matter: licence, tags, data and accuracies, by the names that hubs give them."""
    data = str(model.run.data["name"])
    metrics = [
        {"type": "accuracy", "name": named(result), "value": round(100 * result.accuracy, 2)}
        for result in model.evaluation.results
    ]
    task = {"type": "image-classification" if len(model.run.data["shape"]) == 3 else "other"}
    results = [{"task": task, "dataset": {"name": data, "type": data, "split": "test"}, "metrics": metrics}]
    return {
        "license": licence,
        "library_name": "equipoise",
        "tags": ["adversarial-robustness", "pytorch", task["type"], str(model.run.method["name"])],
        "datasets": [data],
        "metrics": ["accuracy"],
        "model-index": [{"name": model.name, "results": results}],
    }


def _text(model: PublishedModel, weights: str) -> str:
    run, evaluation = model.run, model.evaluation
    used = [key for key in _RECIPE if run.recipe.get(key) not in (None, 0, "none")]
    settings = ", ".join(f"{key} {_short(run.recipe[key])}" for key in (*used, "seed"))
    which = {"best": "best epoch, by robust accuracy on validation samples", "last": "last epoch"}[weights]
    rows = [(named(result), *accuracy_cells(result)) for result in evaluation.results]
    kept = [f"- {warning}" for warning in (*evaluation.warnings, *map(str, evaluation.flags))]
    again = evaluation.provenance.command
    lines = [
        f"# {model.name}",
        f"`{run.net.get('name', 'a network')}` of {run.net['parameters']:,} parameters for `{run.data['name']}`, "
        f"trained by {run.method['name']}: `{run.method['sum']}`. Inputs are float32 in [0, 1] of shape "
        f"{tuple(run.data['shape'])}; the outputs are logits of {len(run.data['classes'])} classes.",
        "## Accuracy on the test set",
        as_markdown(("attack", *ACCURACY), rows),
        *(["What to know before citing a number:", "\n".join(kept)] if kept else []),
        "## Training",
        f"`{run.provenance.command}`",
        f"{settings}. The weights are those of the {which}. All settings: `{RECORD}`.",
        f"The data have the SHA-256 `{run.data['sha256']}`, the file `{WEIGHTS}` `{run.weights[WEIGHTS]}`.",
        "## Use",
        f'```python\nimport equipoise as eq\n\nnet, run = eq.load("{model.name}")\n```',
        "The name is that of a model that comes with equipoise, or the path of this folder.",
        "## Verify",
        f"```\nequipoise verify {shlex.quote(model.name)}\n{again}\n```",
        f"The first command checks the weights and `{EVALUATION}`, and predicts every sample again. The second attacks "
        f"again; on a machine of the same kind the digest of its record is `{digest(evaluation)}`.",
    ]
    return "\n\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def named(result: AttackRecord) -> str:
    """Return attack, norm and radius of a result, such as `autoattack, linf 0.1`."""
    return "clean" if result.attack == "clean" else f"{result.attack}, {result.norm} {result.eps:.4g}"
