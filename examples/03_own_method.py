"""A training method of your own is a sum of terms: an objective, at a point, with a weight."""

from equipoise import Ascent, Ball, data, nets
from equipoise.attacks import pgd, udp
from equipoise.attacks.steps import Momentum, Triangular, Uniform, UniformUpTo
from equipoise.losses import cross_entropy, entropy, kl, margin
from equipoise.training import Recipe, fit

digits = data.load("digits")
recipe = Recipe(epochs=5, batch_size=64, valid_eps=0.1)

# Cross-entropy on the clean and the UDP point, predictions kept alike at the PGD point, confidence discouraged.
inner = pgd(0.1, 0.02, 8, start="zero", return_point="last")
mine = cross_entropy - 0.1 * entropy + 0.5 * (cross_entropy @ udp(0.3, 0.03, 15)) + 2.0 * (kl() @ inner)

# An ascent of your own: the margin, in an L2 ball, from a random start, with momentum and a step size that peaks.
climb = Ascent(
    margin,
    Ball("l2", 1.0),
    step_size=Triangular(0.05, peak=0.2),
    steps=UniformUpTo(10),
    step=Momentum(0.9),
    start=Uniform(),
    return_point="best",
)

for method in (mine, cross_entropy + cross_entropy @ climb):
    net = nets.build("mlp", digits.shape, classes=10, seed=0)
    run = fit(method, net, digits, recipe)
    print(f"clean {run.best['valid_clean']:.1%}   under PGD {run.best['valid_pgd']:.1%}   {run.method['sum']}")
