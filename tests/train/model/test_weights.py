import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from imagenet_mds_train.config.load import load_config
    from imagenet_mds_train.model.build import build_model
    from imagenet_mds_train.model.classifier import Classifier
    from imagenet_mds_train.model.weights import read_pretrained, take_pretrained

from imagenet_mds.errors import UserError

CLASSES = ["ant", "bee", "cat"]


def model(*overrides: str) -> Classifier:
    """A ResNet-18 of three classes."""
    return build_model(load_config("dev", overrides), len(CLASSES))


def theirs(classes: int = 1000) -> dict[str, torch.Tensor]:
    """torchvision's layout, which is timm's too."""
    return dict(resnet18(num_classes=classes).state_dict())


def outputs(network: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(network.eval()(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))))


@pytest.mark.parametrize("layout", ["torchvision", "timm checkpoint", "safetensors", "DDP", "half"])
def test_a_resnet_of_any_origin_is_taken_and_gets_a_new_last_layer(tmp_path: Path, layout: str) -> None:
    weights, file = theirs(), tmp_path / "weights.pth"
    if layout == "safetensors":
        file = tmp_path / "weights.safetensors"
        save_file({name: tensor for name, tensor in weights.items() if "num_batches" not in name}, file)
    else:
        saved: dict[str, object] = dict(weights)
        if layout == "timm checkpoint":
            saved = {"arch": "resnet18", "epoch": 3, "state_dict": weights}
        elif layout == "DDP":
            saved = {"model": {f"module.{name}": tensor for name, tensor in weights.items()}}
        elif layout == "half":
            saved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        torch.save(saved, file)
    mine = model()
    head = mine.network.state_dict()["fc.weight"].clone()
    notes = take_pretrained(mine, file, CLASSES)
    taken = mine.network.state_dict()
    assert taken["layer4.1.conv2.weight"].dtype == torch.float32
    torch.testing.assert_close(taken["layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"], rtol=1e-3, atol=1e-3)
    assert torch.equal(taken["fc.weight"], head)
    assert "1,000 outputs" in notes[-1]
    assert "with 3 outputs" in notes[-1]


def test_a_file_of_as_many_classes_is_taken_whole(tmp_path: Path) -> None:
    weights = theirs(len(CLASSES))
    torch.save(weights, tmp_path / "weights.pth")
    reference = resnet18(num_classes=len(CLASSES))
    reference.load_state_dict(weights)
    mine = model()
    assert len(take_pretrained(mine, tmp_path / "weights.pth", CLASSES)) == 1
    torch.testing.assert_close(outputs(mine.network), outputs(reference))


def test_a_network_with_blurpool_takes_plain_weights_and_a_plain_one_no_blurred_ones(tmp_path: Path) -> None:
    torch.save(theirs(), tmp_path / "plain.pth")
    blurred = model("algorithms.blurpool=all")
    take_pretrained(blurred, tmp_path / "plain.pth", CLASSES)
    plain = read_pretrained(tmp_path / "plain.pth").tensors
    assert torch.equal(blurred.network.state_dict()["layer2.0.conv1.conv.weight"], plain["layer2.0.conv1.weight"])
    torch.save(blurred.state_dict(), tmp_path / "blurred.pth")
    take_pretrained(model("algorithms.blurpool=all"), tmp_path / "blurred.pth", CLASSES)
    with pytest.raises(UserError, match=r"another network \(layer2\.0\.conv1\.weight is missing.*algorithms\.blurpool"):
        take_pretrained(model(), tmp_path / "blurred.pth", CLASSES)


def test_another_depth_is_refused_in_one_line(tmp_path: Path) -> None:
    torch.save(theirs(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"layer1\.2\S+ is missing and \d+ more\).*model\.depth"):
        take_pretrained(model("model.depth=34"), tmp_path / "weights.pth", CLASSES)


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('the file ran code')",)


@pytest.mark.parametrize("content", ["code", "text", "empty", "list", "nothing of a ResNet", "a cut safetensors"])
def test_what_is_no_resnet_is_refused_and_never_run(tmp_path: Path, content: str) -> None:
    file = tmp_path / ("weights.safetensors" if content == "a cut safetensors" else "weights.pth")
    if content == "code":
        torch.save({"conv1.weight": _Code()}, file)
        with pytest.raises(SystemExit):
            torch.load(file, weights_only=False)
    elif content == "text":
        file.write_text("hello")
    elif content == "list":
        torch.save([torch.zeros(3)], file)
    elif content == "nothing of a ResNet":
        file.write_bytes(pickle.dumps({"a": 1}))
        torch.save({"a": torch.zeros(2)}, file)
    elif content == "a cut safetensors":
        save_file(theirs(), file)
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file.write_bytes(b"")
    with pytest.raises(UserError, match=str(file)):
        take_pretrained(model(), file, CLASSES)
