"""The configuration that the README shows."""

import re
from pathlib import Path

from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.config.schema import TrainConfig

README = Path(__file__).resolve().parents[3] / "README.md"


def test_the_configuration_for_data_of_ones_own_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "own.yaml").write_text(block, encoding="utf-8")
    config = load_config(str(tmp_path / "own.yaml"))
    assert isinstance(config, TrainConfig)
    # Every key of it is explained.
    leaves = [line for line in block.splitlines() if not line.rstrip().endswith(":")]
    assert sum("#" in line for line in leaves) >= len(leaves) - 3
