from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.compress.export import Template
from engine.compress.groups import Group, choose, importance
from engine.compress.profile import Layer, layers, macs, profile
from engine.compress.prune import prune


def test_resnet20_has_the_published_multiply_accumulates(
    resnet: nn.Module, example: Tensor
) -> None:
    # 40.55 million and, because they run as convolutions, the two shortcuts.
    shortcuts = 32 * 16 * 16 * 16 + 64 * 32 * 8 * 8
    assert macs(resnet, example) == 40_551_040 + shortcuts
    assert sum(layer.macs for layer in layers(resnet, example)) == macs(resnet, example)


def test_layers_are_told_in_the_order_in_which_they_run(resnet: nn.Module, example: Tensor) -> None:
    found = layers(resnet, example)
    assert len(found) == 22
    assert found[0] == Layer("conv1", 3, 16, 9, 1024, 1)
    assert found[-1] == Layer("linear", 64, 10, 1, 1, 1)
    assert not any(m._forward_hooks for m in resnet.modules())


def test_depthwise_and_sequence_layers_count_as_torch_counts_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(2), nn.Linear(36, 5)
    )
    x = torch.rand(2, 3, 8, 8)
    assert sum(layer.macs for layer in layers(model, x)) == macs(model, x)
    assert macs(model, x) == 64 * 3 * 8 + 36 * 8 * 9 + 8 * 36 * 5


def test_a_row_tells_sizes_of_network_and_file(
    resnet: nn.Module,
    resnet_groups: tuple[Group, ...],
    template: Template,
    example: Tensor,
    tmp_path: Path,
) -> None:
    small = prune(
        resnet, resnet_groups, choose(resnet_groups, [0.5] * 12, importance(resnet, resnet_groups))
    )
    written = template.write(small, tmp_path / "m.onnx")
    before, after = profile(resnet, example), profile(small, example, written.path)
    assert before.parameters == 269_722 + 32 * 16 + 64 * 32
    assert before.bytes is None
    assert after.bytes == written.path.stat().st_size
    assert after.compressed_bytes is not None
    assert 4 * after.parameters * 0.85 < after.compressed_bytes < after.bytes
    assert after.parameters < 0.27 * before.parameters
    assert after.macs < 0.27 * before.macs


def test_zeros_are_not_counted_as_nonzeros() -> None:
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight[1] = 0
    row = profile(model, torch.rand(1, 4))
    assert (row.parameters, row.nonzeros) == (12, 8)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"absent\.onnx: cannot be read"):
        profile(nn.Linear(4, 3), torch.rand(1, 4), "absent.onnx")
