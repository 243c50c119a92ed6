from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from engine import models
from engine.compress.export import Template, export, parity
from engine.compress.groups import Group, choose, importance, trace
from engine.compress.inference import operators, session
from engine.compress.prune import prune


class Mixed(nn.Module):
    """What the exporter folds, bakes or keeps: batch norms, a flatten, a depthwise layer."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 8, 3, bias=True)
        self.norm = nn.BatchNorm2d(8, eps=1e-2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.second = nn.BatchNorm2d(8, affine=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(8, hidden, bias=False)
        self.third = nn.BatchNorm1d(hidden)
        self.drop = nn.Dropout()
        self.head = nn.Linear(hidden, 4)
        for tensor in self.buffers():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.first(x))).relu()
        x = self.second(self.depthwise(x)).relu()
        x = self.third(self.hidden(torch.flatten(self.pool(x), 1))).relu()
        logits: Tensor = self.head(self.drop(x))
        return logits


def _small(resnet: nn.Module, groups: tuple[Group, ...], ratio: float) -> nn.Module:
    design = choose(groups, [ratio] * len(groups), importance(resnet, groups))
    return prune(resnet, groups, design)


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_the_template_writes_any_pruned_variant_exactly(
    resnet: nn.Module,
    resnet_groups: tuple[Group, ...],
    template: Template,
    example: Tensor,
    tmp_path: Path,
    ratio: float,
) -> None:
    small = _small(resnet, resnet_groups, ratio)
    written = template.write(small, tmp_path / "m.onnx")
    assert parity(written.path, small, example) < 1e-5
    onnx.checker.check_model(onnx.load(written.path), full_check=True)


def test_the_template_equals_a_fresh_export_byte_by_byte(
    short_resnet: nn.Module,
    short_groups: tuple[Group, ...],
    short_template: Template,
    example: Tensor,
    tmp_path: Path,
) -> None:
    small = _small(short_resnet, short_groups, 0.6)
    fresh = export(small, example, tmp_path / "fresh.onnx")
    assert fresh.difference is not None
    assert fresh.difference < 1e-5
    kept = pickle.loads(pickle.dumps(short_template))
    again = export(small, example, tmp_path / "again.onnx", template=kept)
    assert (fresh.digest, fresh.difference) == (again.digest, again.difference)
    content = again.path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == again.digest
    assert len(content) == again.bytes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.onnx", "fresh.onnx"]


def test_the_file_is_whole_takes_any_batch_and_tells_nothing_of_this_machine(
    resnet: nn.Module, template: Template, tmp_path: Path
) -> None:
    path = template.write(resnet, tmp_path / "m.onnx").path
    proto = onnx.load(path, load_external_data=False)
    assert not any(i.data_location for i in proto.graph.initializer)
    assert (proto.ir_version, proto.opset_import[0].version) == (8, 18)
    assert {node.op_type for node in proto.graph.node}.isdisjoint({"BatchNormalization", "Shape"})
    content = path.read_bytes()
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content
    runtime = session(path)
    for batch in (1, 7):
        (logits,) = runtime.run(["logits"], {"images": np.zeros((batch, 3, 32, 32), np.float32)})
        assert logits.shape == (batch, 10)


def test_the_normalisation_is_inside_the_file(
    resnet: nn.Module, template: Template, tmp_path: Path
) -> None:
    other = models.build("resnet20", mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)).eval()
    other.load_state_dict(
        {k: v for k, v in resnet.state_dict().items() if "normalise" not in k}, strict=False
    )
    written = template.write(other, tmp_path / "m.onnx")
    assert parity(written.path, other, torch.rand(2, 3, 32, 32)) < 1e-5
    with pytest.raises(ValueError, match="ONNX and torch differ"):
        parity(written.path, resnet, torch.rand(2, 3, 32, 32))


def test_onnx_runtime_computes_gelu_in_one_operator(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.GELU(), nn.Linear(8, 4)).eval()
    found = export(network, torch.rand(2, 3, 4, 4), tmp_path / "gelu.onnx")  # compares with torch
    executed = operators(found.path)
    assert "Erf" not in executed
    assert executed.get("Gelu", 0) + executed.get("BiasGelu", 0) == 1


def test_every_way_to_fold_a_batch_norm_is_followed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Mixed().train(), torch.rand(3, 3, 8, 8)
    groups = trace(model, x)
    template = Template(model, x, groups)
    assert all(m.training for m in model.modules())
    small = _small(model, groups, 0.5)
    written = template.write(small, tmp_path / "m.onnx")
    assert parity(written.path, small, x) < 1e-5
    (depthwise,) = (
        a.i
        for n in onnx.load(written.path).graph.node
        for a in n.attribute
        if n.op_type == "Conv" and a.name == "group" and a.i > 1
    )
    assert depthwise == 4


def test_a_network_of_another_kind_is_no_variant(template: Template) -> None:
    with pytest.raises(ValueError, match="no variant of the template's"):
        template.build(nn.Sequential(nn.Conv2d(3, 4, 1)))


def test_what_differs_from_torch_is_not_written(
    resnet: nn.Module, example: Tensor, tmp_path: Path
) -> None:
    class Moody(nn.Module):
        """Computes something else while it is exported."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return y * 1.01 if torch.compiler.is_exporting() else y

    path = tmp_path / "m.onnx"
    path.write_bytes(b"what was there")
    with pytest.raises(ValueError, match=r"differ by 0\.0\d+ of the largest logit"):
        export(Moody(), torch.rand(2, 4), path)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_torch_cannot_export_gives_one_sentence(tmp_path: Path) -> None:
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"torch cannot export the network: .*data-dependent"):
        export(Undecided(), torch.rand(2, 4), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_leaves_nothing_behind(
    resnet: nn.Module, template: Template, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        template.write(resnet, tmp_path / "absent" / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_kept_template_writes_the_same_without_the_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, example = Mixed(hidden=5000).eval(), torch.rand(2, 3, 6, 6)
    made = Template.kept(tmp_path / "kept", "mixed", model, example)
    (path,) = (tmp_path / "kept").iterdir()
    assert path.stat().st_size < 20_000, "no weights are in it"
    others = Mixed(hidden=5000).eval()
    with monkeypatch.context() as patch:
        patch.setattr("engine.compress.export._convert", None)
        again = Template.kept(tmp_path / "kept", "mixed", others, example)
    assert again.build(others) == made.build(others)


@pytest.mark.parametrize("harm", ["cut", "other code", "no template", "odd"])
def test_a_kept_template_that_no_longer_fits_is_made_anew(tmp_path: Path, harm: str) -> None:
    model, example = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    fresh = Template.kept(tmp_path, "small", model, example).build(model)
    (path,) = tmp_path.iterdir()
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif harm == "no template":
        path.write_bytes(fresh)
    elif harm == "odd":
        kept = onnx.load(path)
        kept.metadata_props[0].value = '{"constants": [], "folded": [], "moved": {}}'
        onnx.save(kept, path)
    else:
        model[1] = nn.Tanh()
    again = Template.kept(tmp_path, "small", model, example)
    parity(again.build(model), model, example)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert (again.build(model) == fresh) is (harm != "other code")


def test_a_template_that_cannot_be_kept_serves_all_the_same(tmp_path: Path) -> None:
    model, example = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    (tmp_path / "file").write_text("no folder")
    template = Template.kept(tmp_path / "file", "small", model, example)
    parity(template.build(model), model, example)
