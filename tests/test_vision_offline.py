# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What `make vision` runs: its table and its pictures, and what it says when Fashion-MNIST is not there."""

import image_offline
import numpy as np
import pytest
from PIL import Image
from tiny_bert import arguments
from tiny_images import TINY_VIT


pytest.importorskip("matplotlib")


pytestmark = pytest.mark.usefixtures("isolated", "threads_kept")


@pytest.mark.parametrize("model_type", ["ea_vit", "ea_resnet"])
@pytest.mark.slow
def test_a_run_leaves_a_table_and_two_pictures(model_type, tmp_path, capsys):
    tiny = ",".join(f"{name}={value}" for name, value in TINY_VIT.items() if name != "image_size")
    options = {"max_train_steps": 2, **({"config_overrides": tiny} if model_type == "ea_vit" else {})}
    image_offline.main(arguments(model_type=model_type, output_dir=tmp_path, **options))
    printed = capsys.readouterr().out
    rows = dict(line.rsplit(maxsplit=1) for line in printed.splitlines() if line.startswith("  ") and "0." in line)
    assert [name.strip() for name in rows] == ["majority class", "nearest class mean", model_type]
    # The digits' classes are of one size, and their means tell most of them apart.
    assert float(rows["  majority class"]) < 0.12 and 0.85 < float(rows["  nearest class mean"]) < 0.95
    for name in ("confusion_matrix.png", "attention_maps.png"):
        picture = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert min(picture.shape[:2]) > 500 and picture.std() > 20


def test_what_to_do_without_fashion_mnist(tmp_path):
    with pytest.raises(SystemExit, match=r"nowhere. Install it with `sudo apt-get install dataset-fashion-mnist`"):
        image_offline.main(["--dataset", "fashion-mnist", "--data_dir", str(tmp_path / "nowhere")])
