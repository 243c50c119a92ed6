"""Recipes: what may stand in one, and jobs that carry one out on a real fleet."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from operating import JOBS, Site, errors, few_digits, hdap

from engine.compress.export import Exported
from hdap_tui.config import load
from hdap_tui.config.schema import Compression
from hdap_tui.errors import ExitCode, SettingsError
from hdap_tui.jobs import control as jobs
from hdap_tui.jobs.deciding import check_size
from hdap_tui.jobs.steps import Steps
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.fleet_file import fleet_toml
from hdap_tui.lab.profiles import Plan

SETTINGS = f"""{JOBS}
[compression.finetune]
epochs = 1
lr = 0.05
threads = 1

[[recipes.halved.steps]]
method = "uniform"
kept = 0.5
multiple = 4
[[recipes.halved.steps]]
method = "finetune"
[[recipes.halved.steps]]
method = "static"
take = "always"

[[recipes.sparse.steps]]
method = "dhspg"
kept = 0.6
epochs = 2
[[recipes.sparse.steps]]
method = "unstructured"
kept = 0.5
scope = "global"
[[recipes.sparse.steps]]
method = "finetune"
epochs = 1

[[recipes.learnt.steps]]
method = "precision"
precisions = ["fp32", "int8", "int4"]
rounds = 1
take = "always"

[recipes.small]
maximum_bytes = 1000
steps = [{{method = "uniform", kept = 0.9}}]

[recipes.fits]
maximum_bytes = 150000
steps = [
    {{method = "uniform", kept = 0.5}},
    {{method = "dynamic", operators = ["Conv", "Gemm"]}},
]

[recipes.tiny]
maximum_bytes = 1000
steps = [{{method = "uniform", kept = 0.5}}, {{method = "dynamic", operators = ["Conv"]}}]
"""

pytestmark = pytest.mark.timeout(300)


# What may stand in a recipe


def mistake(folder: Path, text: str) -> str:
    path = folder / "fleet.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path)
    return str(caught.value).removeprefix(f"{folder}/")


def steps(*methods: str) -> str:
    tables = (
        f'[[recipes.r.steps]]\nmethod = "{method}"'
        + ("\nkept = 0.5" if method in ("uniform", "dhspg", "hesso", "unstructured") else "")
        for method in methods
    )
    return "\n".join(tables)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[recipes.r]\nmaximum_bytes = 1", "fleet.toml:1: recipes.r has no steps; write them"),
        (steps("static", "finetune"), 'fleet.toml:4: recipes.r.steps.method is "finetune" after '
         '"static": a quantized network can be neither pruned nor trained'),
        (steps("unstructured", "uniform"), 'is "uniform" after "unstructured": training for it'),
        (steps("uniform", "search"), 'is "search" after "uniform": it would be compared'),
        (steps("finetune") + "\nkept = 0.5", 'fleet.toml:3: recipes.r.steps.kept is nothing '
         'that the method "finetune" takes; it takes epochs, lr, optimizer.'),
        ('[[recipes.r.steps]]\nmethod = "uniform"', 'is "uniform", which needs the key "kept".'),
        (steps("uniform").replace("0.5", "1"), "kept is 1; it must lie between 0 and 1"),
        (steps("uniform") + '\nmeasure = "random"', 'the method "uniform" takes "l1" or "l2".'),
        (steps("dynamic") + "\noperators = []", "operators is empty; leave it out"),
        (steps("dynamic") + '\noperators = [\n"Conv",\n"Add"]', 'fleet.toml:5: recipes.r.steps.'
         'operators is "Add"; it must be one of "MatMul", "Gemm", "Conv".'),
        (steps("precision") + '\nprecisions = ["fp16"]', 'fleet.toml:3: recipes.r.steps.precisions '
         'is "fp16"; it must be one of "fp32", "int8", "int4"'),
        (steps("precision") + '\nprecisions = ["int8", "int4"]', 'fleet.toml:3: recipes.r.steps.'
         'precisions is "int8", "int4"; it must be "fp32" and at least one other.'),
        (steps("precision") + '\nprecisions = ["fp32"]', 'precisions is "fp32"; it must be "fp32" '
         'and at least one other.'),
        (steps("precision") + '\nprecisions = ["int8", "int8"]', 'precisions is "int8", "int8"; '
         '"int8" may stand there only once.'),
        (steps("statik"), 'method is "statik"; it must be one of'),
    ],
)  # fmt: skip
def test_a_recipe_that_nobody_could_carry_out_is_refused_with_its_place(
    tmp_path: Path, text: str, sentence: str
) -> None:
    assert sentence in mistake(tmp_path, text)


def test_any_pruning_then_training_then_any_quantization_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    for last in ("dynamic", "static", "precision"):
        for first in ("search", "uniform", "dhspg", "hesso"):
            path.write_text(steps(first, "finetune", "unstructured", "finetune", last))
            methods = [step.method for step in load(path).recipe("r").steps]
            assert methods == [first, "finetune", "unstructured", "finetune", last]


def test_a_recipe_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(steps("uniform"))
    with pytest.raises(SettingsError, match='no recipe is called "rr"; did you mean "r"'):
        load(path).recipe("rr")
    path.write_text("")
    with pytest.raises(SettingsError, match=r"write one into .*fleet.toml as \[\[recipes.r.steps"):
        load(path).recipe("r")


# Jobs


@pytest.fixture(scope="module")
def site(make_lab: Callable[..., LabInfo], tmp_path_factory: pytest.TempPathFactory) -> Site:
    lab = make_lab(2, plan=Plan(step_at_s=None))
    file = tmp_path_factory.mktemp("site") / "fleet.toml"
    file.write_text(fleet_toml(lab, SETTINGS))
    few_digits(file.parent)
    swept = hdap(file, "sweep")
    assert swept.status == ExitCode.DONE, errors(swept)
    return Site(lab, file)


@pytest.fixture(scope="module")
def halved(site: Site) -> dict[str, Any]:
    ended = hdap(site.file, "compress", "--recipe", "halved")
    assert ended.status == ExitCode.DONE, ended.said
    return dict(ended.data["result"])


def weights(path: str) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_channels_weights_and_bits_go_in_one_job(site: Site, halved: dict[str, Any]) -> None:
    metrics = halved["metrics"]
    assert metrics["precision"] == "int8"
    assert metrics["parameters_after"] < 0.3 * metrics["parameters_before"]
    assert all(width % 4 == 0 for width in metrics["widths_after"])
    assert any(values.dtype == np.int8 for values in weights(halved["path"]).values())
    done = set(jobs.find(site.jobs, None).progress().steps)
    assert {"step 1: uniform", "step 2: finetune", "export", "quantize", "decide"} <= done


def test_the_result_and_what_it_began_with_stand_in_one_table_at_once(
    site: Site, halved: dict[str, Any]
) -> None:
    compared = hdap(site.file, "models", "compare").data
    shown = {one["name"]: one for one in compared["models"]}
    before, after = shown["resnet20-digits"], shown[halved["model"]]
    assert before["test_accuracy"] == halved["metrics"]["test_accuracy_before"]
    assert after["test_accuracy"] == halved["metrics"]["test_accuracy"]
    [decided] = halved["metrics"]["decision"]
    measured = {one["device"]: one["quantized_ms"] for one in decided["measured"]}
    assert after["latency"]["median_ms"] == measured[compared["device"]]
    assert before["latency"] is not None


def test_the_recipe_is_kept_with_what_it_made(site: Site, halved: dict[str, Any]) -> None:
    shown = hdap(site.file, "models", "show", halved["model"]).data
    assert shown["metrics"]["recipe"] == {
        "name": "halved",
        "maximum_bytes": 0,
        "network": "resnet20",
        "weights": "builtin:resnet20-digits",
        "data": str(site.folder / "few.npz"),
        "seed": 0,
        "steps": [
            {"method": "uniform", "kept": 0.5, "multiple": 4},
            {"method": "finetune", "epochs": 1, "lr": 0.05, "optimizer": "sgd"},
            {"method": "static", "take": "always"},
        ],
        "finetune": {
            "epochs": 1, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "batch": 128,
            "schedule": "cosine", "bf16": False, "distill": 0.0, "processes": 1, "threads": 1,
        },
    }  # fmt: skip


def test_done_once_more_it_ends_in_the_same_model_without_a_measurement(
    site: Site, halved: dict[str, Any]
) -> None:
    before = jobs.find(site.jobs, None)
    # Whoever measured now would find other figures, or no device.
    ended = hdap(site.file, "jobs", "repeat", before.name)
    assert ended.status == ExitCode.DONE, ended.said
    again = ended.data["result"]
    assert again["digest"] == halved["digest"]
    assert again["metrics"]["decision"] == halved["metrics"]["decision"]
    assert jobs.find(site.jobs, None).name != before.name


def test_sparsity_by_training_and_single_weights_go_together(site: Site) -> None:
    ended = hdap(site.file, "compress", "--recipe", "sparse")
    assert ended.status == ExitCode.DONE, ended.said
    metrics = ended.data["result"]["metrics"]
    assert metrics["precision"] == "fp32"
    assert "decision" not in metrics
    assert metrics["profile"]["nonzeros"] < 0.6 * metrics["profile"]["parameters"]
    said = "\n".join(jobs.find(site.jobs, None).progress().log)
    assert "nothing gets faster" in said


def test_a_size_that_cannot_be_met_is_said_and_what_was_made_is_kept(site: Site) -> None:
    ended = hdap(site.file, "compress", "--recipe", "small")
    assert ended.status == ExitCode.FAILED
    job = jobs.find(site.jobs, None)
    error = (job.result or {})["error"]
    assert "bytes, and the recipe's maximum_bytes is 1000: keep fewer channels" in error
    assert Path(error.rsplit(" in ", 1)[1]).is_file()
    assert "decide" not in job.progress().steps, "no device measures what is too large"


def test_what_is_too_large_is_not_taken_where_the_quantized_file_fits(site: Site) -> None:
    ended = hdap(site.file, "compress", "--recipe", "fits")
    assert ended.status == ExitCode.DONE, ended.said
    result = ended.data["result"]
    assert result["metrics"]["precision"] == "int8"
    assert Path(result["path"]).stat().st_size <= 150000
    [one] = result["metrics"]["decision"]
    assert one["takes"] == "quantized"
    large = r"the float file has \d+ bytes and the recipe's maximum_bytes is 150000"
    assert re.search(rf"it takes the quantized file, as {large}$", one["reason"])
    said = "\n".join(jobs.find(site.jobs, None).progress().log)
    assert re.search(rf"{large}; int8 is taken", said)


def test_who_quantized_already_is_not_told_to(site: Site) -> None:
    before = len(hdap(site.file, "models", "list").data["models"])
    ended = hdap(site.file, "compress", "--recipe", "tiny")
    assert ended.status == ExitCode.FAILED
    job = jobs.find(site.jobs, None)
    error = (job.result or {})["error"]
    assert re.search(r"has \d+ bytes in float and \d+ bytes quantized, and the recipe's", error)
    assert "or quantize" not in error
    assert Path(error.rsplit(" in ", 1)[1]).is_file()
    assert "decide" not in job.progress().steps, "no device measures what is too large"
    assert len(hdap(site.file, "models", "list").data["models"]) == before


def test_a_size_is_met_only_where_every_cluster_gets_a_file_that_fits() -> None:
    def file(size: int) -> Exported:
        return Exported(Path("m.onnx"), f"{size}", size, 0.0)

    request = {"recipe": {"maximum_bytes": 10, "steps": [{"method": "static"}]}}
    asked = Steps.of(request, Compression())
    check_size(asked, file(10), [file(11)])
    check_size(asked, file(11), [file(10), file(9)])
    with pytest.raises(ValueError, match="11 bytes in float and 12 bytes quantized"):
        check_size(asked, file(11), [file(9), file(12)])
    with pytest.raises(ValueError, match="or allow a larger maximum_drop"):
        check_size(asked, file(11))


def test_a_finished_model_is_quantized_and_the_reason_told(site: Site) -> None:
    before = len(jobs.every(site.jobs))
    ended = hdap(site.file, "quantize", "--explain", "--data", "digits")
    assert ended.status == ExitCode.DONE, ended.said
    assert len(jobs.every(site.jobs)) == before + 1, "others were decided on, this one was not"
    [one] = ended.data["decision"]
    assert one["cluster"] == "A"
    assert len(one["measured"]) == 2, "two devices decide"
    ratios = [row["float_ms"] / row["quantized_ms"] for row in one["measured"]]
    assert one["takes"] == ("quantized" if one["expected_speedup"] > 1.02 else "float")
    found = float(np.exp(np.mean(np.log(ratios))))
    assert f"quantized runs {found:.2f} times as fast as float on" in one["reason"]
    assert abs(np.log(one["expected_speedup"])) < abs(np.log(found)) + 0.05, "shrunk if anything"
    count = len(jobs.every(site.jobs))
    again = hdap(site.file, "quantize", "--explain")
    assert again.data["decision"] == [one]
    assert len(jobs.every(site.jobs)) == count, "what is known is not measured again"


def test_a_model_that_is_quantized_already_is_refused(site: Site, halved: dict[str, Any]) -> None:
    count = len(jobs.every(site.jobs))
    ended = hdap(site.file, "quantize", halved["model"])
    assert ended.status == ExitCode.USAGE
    found = re.search(r"is quantized already \(int8\): quantize (\S+), from which", ended.said)
    assert found, ended.said
    assert Path(found[1]).is_file()
    assert len(jobs.every(site.jobs)) == count, "no job was started"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("quantize --maximum-drop -1", "--maximum-drop is -1: Expected `float` >= 0"),
        ("quantize --method dynamic --maximum-drop 1", "--maximum-drop: dynamic quantization"),
        ("quantize --method dynamic --calibration entropy", "--calibration: dynamic quant"),
        ("compress --evaluations 5", "evaluations is 5; it must be at least"),
        ("compress --target-speedup 0.9", "target_speedup is 0.9; it must be more than 1"),
        ("compress --recipe small --maximum-drop 0", '--maximum-drop: the recipe "small" has no'),
    ],
)
def test_options_that_make_no_sense_start_no_job(site: Site, line: str, said: str) -> None:
    count = len(jobs.every(site.jobs))
    ended = hdap(site.file, *line.split())
    assert ended.status == ExitCode.USAGE
    assert said in ended.said
    assert len(jobs.every(site.jobs)) == count


def test_images_of_other_classes_are_refused(site: Site, tmp_path: Path) -> None:
    images = np.zeros((40, 3, 32, 32), np.uint8)
    labels = np.arange(40) % 3
    np.savez(tmp_path / "other.npz", train_images=images, train_labels=labels,
             test_images=images, test_labels=labels)  # fmt: skip
    ended = hdap(site.file, "quantize", "--data", str(tmp_path / "other.npz"))
    assert ended.status == ExitCode.FAILED
    error = (jobs.find(site.jobs, None).result or {})["error"]
    assert "other has 3 classes" in error
    ended = hdap(site.file, "quantize", "--data", str(tmp_path / "none"))
    assert ended.status == ExitCode.USAGE
    shutil.rmtree(tmp_path)


def test_a_precision_for_each_layer_is_learnt_from_what_devices_measure(site: Site) -> None:
    ended = hdap(site.file, "compress", "--recipe", "learnt")
    assert ended.status == ExitCode.DONE, ended.said
    metrics = ended.data["result"]["metrics"]
    assert metrics["precision"] == "mixed"
    layers = metrics["layer_precisions"]
    assert len(layers) == 22
    assert set(layers.values()) <= {"fp32", "int8", "int4"}
    kinds = {values.dtype for values in weights(ended.data["result"]["path"]).values()}
    assert (np.dtype(np.int8) in kinds) == ("int8" in layers.values())
    assert metrics["networks_measured"] >= 3
