import copy
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from imagenet_mds_train.config.load import load_config
    from imagenet_mds_train.model.build import build_model
    from imagenet_mds_train.model.memory import checkpoint_activations

pytestmark = pytest.mark.slow  # imports composer


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("recipe", ["algorithms.blurpool=all", "algorithms.stochastic_depth={drop_rate: 0.5}"])
def test_weights_gradients_and_statistics_are_those_without_it(depth: int, recipe: str) -> None:
    model = build_model(load_config("dev", (f"model.depth={depth}", recipe)), 5)
    plain = copy.deepcopy(model)
    checkpoint_activations(model.network)
    assert list(model.state_dict()) == list(plain.state_dict())
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    targets = torch.eye(5)[:4]
    for one in (model, plain):
        torch.manual_seed(3)
        one.train()
        torch.autograd.backward(one.loss(one((images, targets)), (images, targets)))
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name  # type: ignore[arg-type] # both have gradients
    for (name, buffer), same in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, same), name
    for one in (model, plain):
        one.eval()
    with torch.inference_mode():
        assert torch.equal(model((images, targets)), plain((images, targets)))


def test_less_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []
    for checkpointed in (False, True):
        model = build_model(load_config("dev", ("model.depth=50",)), 5).train()
        if checkpointed:
            checkpoint_activations(model.network)
        saved = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model((torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(0)))
        kept.append(saved)
    assert kept[1] < kept[0] / 2
