"""Train by uncertainty-driven perturbations and compare with PGD training, from Python."""

from equipoise import data, methods, nets
from equipoise.training import Recipe, fit

digits = data.load("digits")
recipe = Recipe(epochs=10, batch_size=64, valid_eps=0.1)
for name, method in {
    "standard": methods.standard(),
    "PGD": methods.pgd_at(eps=0.15, step_size=0.03, steps=10),
    "UDP": methods.udp(eps=0.3, step_size=0.03, steps=15),
}.items():
    net = nets.build("mlp", digits.shape, classes=10, seed=0)
    run = fit(method, net, digits, recipe)
    print(
        f"{name:9s} clean {run.best['valid_clean']:.1%}   under PGD {run.best['valid_pgd']:.1%}   {run.method['sum']}"
    )
