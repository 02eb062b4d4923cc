import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torchvision.models import resnet18

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from imagenet_mds_train.checkpoints.payload import PAYLOAD_KEY, make_payload
    from imagenet_mds_train.config.load import load_config
    from imagenet_mds_train.model.build import build_model
    from imagenet_mds_train.model.classifier import MEAN, STD
    from imagenet_mds_train.model.export import export

from imagenet_mds.errors import UserError

pytestmark = pytest.mark.slow

CLASSES = ["ant", "bee", "cat"]


def checkpoint(folder: Path, *overrides: str) -> Path:
    """A checkpoint of a ResNet-18 whose every layer matters."""
    config = load_config("dev", overrides)
    torch.manual_seed(0)
    model = build_model(config, len(CLASSES))
    for name, tensor in model.state_dict().items():
        if "running" in name or "bn" in name:
            tensor.copy_(torch.rand_like(tensor.float()) + 0.5)
    payload = make_payload(config.model_dump(mode="json"), CLASSES, {})
    path = folder / "ep1-ba5.pt"
    torch.save({"state": {"model": model.state_dict()}, PAYLOAD_KEY: payload}, path)
    return path


def test_a_state_dict_is_loaded_by_torchvision_as_it_is(tmp_path: Path) -> None:
    written = export(checkpoint(tmp_path, "algorithms.ema={}"), tmp_path / "net.pth")
    assert written.averaged
    assert written.largest_difference < 1e-5
    theirs = resnet18(num_classes=len(CLASSES))
    theirs.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("blurpool", ["null", "convolutions", "all"])
def test_safetensors_say_what_they_are(tmp_path: Path, blurpool: str) -> None:
    written = export(checkpoint(tmp_path, f"algorithms.blurpool={blurpool}"), tmp_path / "net.safetensors")
    assert written.largest_difference == 0
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        metadata = file.metadata()
        assert ("layer2.0.conv1.conv.weight" in set(file.keys())) == (blurpool != "null")
    assert metadata["architecture"] == "resnet18"
    assert metadata["blurpool"] == blurpool.replace("null", "none")
    assert json.loads(metadata["classes"]) == CLASSES
    assert json.loads(metadata["mean"]) == pytest.approx([value / 255 for value in MEAN])
    assert json.loads(metadata["std"]) == pytest.approx([value / 255 for value in STD])


@pytest.mark.parametrize("blurpool", ["null", "all"])
def test_onnx_computes_the_same_from_uint8_for_any_number_of_images(tmp_path: Path, blurpool: str) -> None:
    import onnxruntime

    written = export(checkpoint(tmp_path, f"algorithms.blurpool={blurpool}"), tmp_path / "net.onnx")
    assert 0 < written.largest_difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    images = torch.zeros(5, 3, 128, 128, dtype=torch.uint8).numpy()
    (logits,) = session.run(None, {"images": images})
    assert logits.shape == (5, len(CLASSES))


def test_a_network_with_blurpool_is_not_passed_off_as_a_plain_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"BlurPool.*export to \.safetensors or \.onnx"):
        export(checkpoint(tmp_path, "algorithms.blurpool=convolutions"), tmp_path / "net.pth")
    assert not (tmp_path / "net.pth").exists()


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        export(checkpoint(tmp_path), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"must end in one of \.safetensors"):
        export(checkpoint(tmp_path), tmp_path / "net.bin")
    assert (tmp_path / "net.pth").read_text() == "mine"
