"""Your own training loop: a method gives the loss at its perturbed points, the rest stays yours."""

import torch

from equipoise import data, methods, nets

digits = data.load("digits")
net = nets.build("mlp", digits.shape, classes=10, seed=0)
method = methods.trades(eps=0.1, step_size=0.02, steps=8, beta=3.0)
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
step = 0

for epoch in range(5):
    for index in torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(epoch)).split(64):
        x, y = digits.train.x[index], digits.train.y[index]
        loss = method.loss(net, x, y, step=step, index=index)  # another step draws other random starts
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    print(f"epoch {epoch + 1}: loss {float(loss.detach()):.3f}")
