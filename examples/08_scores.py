"""What robustness means: the mean margin, between a certificate and attacks, before and after adversarial training."""

import numpy as np

from equipoise import data, methods, nets, scores
from equipoise.training import Recipe, fit

digits = data.load("digits")
x, y = digits.test.x[:60], digits.test.y[:60]
attacked = {}

for name, method in (
    ("standard", methods.standard()),
    ("L2 PGD, eps 0.5", methods.pgd_at(eps=0.5, steps=3, norm="l2")),
):
    net = nets.build("mlp", digits.shape, classes=10, seed=0, widths=(64,))
    fit(method, net, digits, Recipe(epochs=20, batch_size=64))
    accuracy = (net(digits.test.x).argmax(1) == digits.test.y).double().mean()
    print(f"{name}: accuracy {accuracy:.1%}")

    # F, Example 2: how far is the nearest point that is classified otherwise? No nearer than a certificate says, and no
    # farther than an attack finds it.
    certified, attacked[name] = scores.certified_r2(digits.shape)(net, x), scores.r2(digits.shape)(net, x)
    print(f"  mean L2 margin between {certified.value:.3f} and {attacked[name].value:.3f} ± {attacked[name].error:.3f}")

    # F, Example 5: the same with the true labels, 0 where the prediction is wrong.
    print(f"  to a wrong prediction {scores.label_aware(digits.shape)(net, x, y).value:.3f}")

# The same samples were looked at twice: what adversarial training gained is known better than either score is.
gain = np.subtract(*(estimate.values for estimate in reversed(attacked.values())))
print(f"gain {gain.mean():.3f} ± {gain.std(ddof=1) / np.sqrt(len(gain)):.3f}")

# One of your own, of the last network: how probable is it that noise of up to eps in each pixel changes nothing?
noise = scores.Sampled(scores.UniformOnBall("linf", samples=16))
agreement = scores.Score(noise, scores.Radii(0.5, count=8, average=True), H=scores.identity, name="agreement")
estimate = agreement(net, x)
print(*(f"eps {eps:.2f}: {share:.1%}" for eps, share in zip(estimate.radii, estimate.curve, strict=True)), sep=", ")
