"""What robustness means: the mean margin between a certificate and an attack, and an average of one's own."""

from equipoise import data, methods, nets, scores
from equipoise.training import Recipe, fit

digits = data.load("digits")
x = digits.test.x[:40]

for method in (methods.standard(), methods.pgd_at(eps=0.15, step_size=0.04, steps=8)):
    net = nets.build("mlp", digits.shape, classes=10, seed=0, widths=(64,))
    fit(method, net, digits, Recipe(epochs=15, batch_size=64))
    print(method)

    # F, Example 2: how far is the nearest point that is classified otherwise?
    below, above = scores.certified_r2(digits.shape)(net, x), scores.r2(digits.shape)(net, x)
    print(f"  mean L2 margin between {below.value:.3f} and {above.value:.3f} ± {1.96 * above.error:.3f}")

    # How probable is it that noise of up to 0.5 per pixel does not change the prediction, averaged over radii?
    law = scores.UniformOnBall("linf", samples=16)
    mine = scores.Score(scores.Sampled(law), scores.Radii(0.5, average=True), H=scores.identity, name="agreement")
    print(" ", mine(net, x))
