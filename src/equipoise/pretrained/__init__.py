"""The models that come with equipoise, and the form in which a trained model is given to others.

A published model is a folder: `model.safetensors`, the record of its training `run.json`, the record of its evaluation
`evaluation.json.gz`, and a card `README.md` in the form of a model hub. `equipoise push` writes such a folder from a
run; those of this package are named by their place in it, such as `digits/udp-0.15`. Wherever a run directory is
expected, the folder or the name can be given instead.
"""

from equipoise.core.documentation import show_attributes
from equipoise.pretrained.cards import card
from equipoise.pretrained.catalogue import EVALUATION, WEIGHTS, PublishedModel, find, hint, names, read
from equipoise.pretrained.publishing import publish

__all__ = ["EVALUATION", "WEIGHTS", "PublishedModel", "card", "find", "hint", "names", "publish", "read"]

show_attributes(__name__)
