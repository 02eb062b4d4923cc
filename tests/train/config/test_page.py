"""The configurations that the page about training shows."""

import re
import shlex
from pathlib import Path

from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.config.schema import TrainConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "training.md"


def test_the_configuration_for_data_of_ones_own_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "own.yaml").write_text(block, encoding="utf-8")
    config = load_config(str(tmp_path / "own.yaml"))
    assert isinstance(config, TrainConfig)
    # Every key of it is explained.
    leaves = [line for line in block.splitlines() if not line.rstrip().endswith(":")]
    assert sum("#" in line for line in leaves) >= len(leaves) - 3


def test_the_command_for_tiny_imagenet_overrides_what_it_has_to() -> None:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", "")
    (command,) = re.findall(r"^imagenet-mds train .* --run-name tiny64 .*$", text, re.MULTILINE)
    words = shlex.split(command)
    config = load_config(words[words.index("--config") + 1], [word for word in words if "=" in word])
    assert (config.augment.size_px, config.evaluation.resize_px, config.evaluation.crop_px) == (64, 64, 64)
    assert config.data.subset is None
    assert config.augment.scale == (0.35, 1.0)
