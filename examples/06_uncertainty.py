"""Any uncertainty of any model can be climbed: an ensemble's disagreement, or that of Monte Carlo dropout."""

from torch import nn

from equipoise import data, methods, nets
from equipoise.attacks import pgd, udp
from equipoise.losses import UNCERTAINTIES
from equipoise.models import Ensemble, MonteCarloDropout
from equipoise.training import Recipe, fit

digits = data.load("digits")
x, y = digits.test.x[:200], digits.test.y[:200]

# Five networks; perturbations go to where they disagree, and every network descends its own loss there.
ensemble = Ensemble([nets.build("mlp", digits.shape, classes=10, seed=seed) for seed in range(5)])
method = methods.udp(eps=0.2, step_size=0.02, steps=10, uncertainty="mutual_information").per_member()
fit(method, ensemble, digits, Recipe(epochs=4, batch_size=64))

# A network with dropout is a distribution over networks too: its masks stand still during a climb.
dropout = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
fit(methods.udp(eps=0.2, step_size=0.02, steps=10), MonteCarloDropout(dropout, samples=5), digits, Recipe(epochs=4))

# Both work wherever a network does.
for name, model in (("ensemble", ensemble), ("dropout", MonteCarloDropout(dropout.eval(), samples=5))):
    print(name, f"robust accuracy {1 - pgd(0.1, 0.01, 20)(model, x, y).success.float().mean():.1%}")
    for what, uncertainty in UNCERTAINTIES.items():
        before = uncertainty(model.draw()(x)).mean()
        after = uncertainty(model.draw()(udp(0.1, 0.01, 20, uncertainty=what)(model, x).x)).mean()
        print(f"  {what:>18}: {before:8.4f} -> {after:8.4f}")
