import copy
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from imagenet_mds_train.config.load import load_config
    from imagenet_mds_train.model.build import build_model, compile_network

pytestmark = [
    pytest.mark.slow,  # compiles
    pytest.mark.filterwarnings("ignore"),  # of the compiler, about its own parts
]


def test_a_compiled_network_computes_the_same_at_each_size_and_keeps_its_names() -> None:
    model = build_model(load_config("dev", ("model.depth=10", "algorithms.blurpool=all")), 5)
    plain = copy.deepcopy(model)
    # Without the C++ compiler, which takes minutes.
    compile_network(model.network, sizes=2, backend="aot_eager")
    assert list(model.state_dict()) == list(plain.state_dict())
    targets = torch.eye(5)[:4]
    for size in (32, 48):
        images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
        for one in (model, plain):
            one.zero_grad()
            torch.autograd.backward(one.loss(one((images, targets)), (images, targets)))
        for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
