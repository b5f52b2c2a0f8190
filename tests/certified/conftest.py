"""The networks of images that certificates are tested on."""

import pytest
from bounded_nets import NETS, global_seed, with_statistics
from torch import nn


@pytest.fixture(scope="module", params=NETS)
def image_net(request) -> nn.Module:
    return global_seed(lambda: NETS[request.param]().apply(with_statistics)).eval().requires_grad_(False)
