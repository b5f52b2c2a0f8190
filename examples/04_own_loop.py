"""Your own training loop: a method gives the perturbed points and the losses, the rest stays yours."""

import torch

from equipoise import as_predictive, data, methods, nets
from equipoise.rng import Streams, fold

digits = data.load("digits")
net = nets.build("mlp", digits.shape, classes=10, seed=0)
predictive, method = as_predictive(net), methods.trades(eps=0.1, step_size=0.02, steps=8, beta=3.0)
optimizer = torch.optim.Adam(net.parameters(), 1e-3)

for epoch in range(5):
    for index in torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(epoch)).split(64):
        x, y = digits.train.x[index], digits.train.y[index]
        streams = Streams.of(fold(0, epoch), index)  # random draws that belong to a sample, not to a batch
        points = method.points(predictive, x, y, streams)
        losses, _ = method.losses(predictive, x, y, points, streams)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {float(losses.mean().detach()):.3f}")
