"""Somebody else's training, evaluated as it goes: robust accuracy every epoch, and nothing of the training changes."""

import torch

from equipoise import attacks, data, nets
from equipoise.evaluation import evaluate

digits = data.load("digits")
net = nets.build("mlp", digits.shape, classes=10, seed=0)
optimizer = torch.optim.Adam(net.parameters(), 1e-3)

valid, eps = digits.test.limit(64), 0.05
quick = attacks.Chain((("apgd-ce", attacks.apgd(eps, steps=20)), ("apgd-t", attacks.apgd_t(eps, steps=20, targets=3))))
for epoch in range(5):
    for index in torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(epoch)).split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(digits.train.x[index]), digits.train.y[index]).backward()
        optimizer.step()
    clean, robust = evaluate(net, valid.x, valid.y, [("quick", quick)])
    print(f"epoch {epoch + 1}: clean {clean.accuracy:.1%}   robust {robust.accuracy:.1%} of {robust.n}")

# With Lightning it is one line, and robust_accuracy/quick/0.05 is logged:
#   Trainer(callbacks=[equipoise.evaluation.interop.lightning_callback([("quick", quick)])])
