"""Known-broken defences, and honest models beside them, all trained in seconds on small images.

defence = BROKEN["k-wta"].build(load("digits"), 0)
broken = transfer(defence.stand_in(), pgd(0.1, steps=80), "stand-in")(defence, x, y)
"""

from equipoise.masking.zoo.broken import BROKEN, BrokenDefence
from equipoise.masking.zoo.defence import Defence
from equipoise.masking.zoo.honest import HONEST, HonestModel

__all__ = ["BROKEN", "HONEST", "BrokenDefence", "Defence", "HonestModel"]
