"""Perturbations in a latent space: encoder and classifier are trained together, robustness is measured in the input."""

from equipoise import attacks, data, methods, nets
from equipoise.attacks.spaces import Latent
from equipoise.evaluation import evaluate
from equipoise.training import Recipe, fit

digits = data.load("digits")
x, y = digits.test.x[:100], digits.test.y[:100]
net = nets.build("mlp", digits.shape, classes=10, seed=0)
print("layers to split at:", *nets.stages(net))

# CE(C(E(x) + d)), d climbing the entropy within 0.1 of the code E(x), the output of the layer fc1.
run = fit(methods.ls_udp(eps=0.1, layer="fc1", step_size=0.02, steps=10), net, digits, Recipe(epochs=8, batch_size=64))
print(f"validation accuracy {run.last['valid_clean']:.1%}")

# Any attack can be sent into the latent space; its points are codes then.
codes = attacks.pgd(0.5, 0.05, 20, space=Latent("fc1"))(net, x, y)
print("codes", tuple(codes.x.shape), f"accuracy {1 - codes.success.float().mean():.1%}")

clean, robust = evaluate(net, x, y, [("pgd", attacks.pgd(0.1, 0.01, 40))])
print(f"in the input: clean {clean.accuracy:.1%}, under PGD {robust.accuracy:.1%}")
