"""Attack a network: every attack is one call, and what comes back says what happened."""

import torch

from equipoise import attacks, data, nets

digits = data.load("digits")
net = nets.build("mlp", digits.shape, classes=10, seed=0)

optimizer = torch.optim.Adam(net.parameters(), 1e-2)
for _ in range(100):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(digits.train.x), digits.train.y).backward()
    optimizer.step()

x, y = digits.test.x, digits.test.y
for name, attack in {
    "fgsm": attacks.fgsm(eps=0.1),
    "pgd": attacks.pgd(eps=0.1, steps=20, restarts=2),
    "pgd, L2": attacks.pgd(eps=0.5, steps=20, norm="l2"),
    "cw": attacks.cw(eps=0.1, steps=20),
    "udp (no labels)": attacks.udp(eps=0.1, steps=20),
    "pgd towards the runner-up": attacks.targeted(attacks.pgd(eps=0.1, steps=20), "runner_up"),
}.items():
    found = attack(net, x, y, seed=0)
    print(
        f"{name:26s} fooled {found.success.float().mean():6.1%}   mean distance {found.distance.mean():.3f}   "
        f"{found.evaluations.float().mean():.1f} evaluations per sample"
    )
