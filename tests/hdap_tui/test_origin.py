"""What a model was trained on."""

from dataclasses import replace
from pathlib import Path

import pytest

from hdap_tui.config import Settings, load
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.jobs.origin import Origin, origin
from hdap_tui.store.records import ModelRow

MADE = ModelRow(
    id=1,
    digest="d", name="small", path="/m.onnx", kind="artifact", bytes=1, parent="",
    job="compress-1", created_at="", metrics={},
)  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "fleet.toml"
    path.write_text('[fleet]\nstate = "state"\n[compression]\nseed = 3\ndata = "digits"\n')
    return load(path)


def test_it_is_what_the_job_that_made_the_model_says(settings: Settings) -> None:
    jobs = settings.state_dir / "jobs"
    asked = {"data": "/pictures", "compression": {"seed": 5, "classes": 7}}
    assert JobFolder.create(jobs, "compress", asked).name == MADE.job
    assert origin(settings, MADE) == Origin("/pictures", 5, 7)
    assert origin(settings, replace(MADE, job="")) == Origin("digits", 3, 10)


@pytest.mark.parametrize("request_", [None, "", '{"compression": 1}', '{"data": "x"}'])
def test_where_the_job_cannot_be_read_it_is_the_settings(
    settings: Settings, request_: str | None
) -> None:
    folder = settings.state_dir / "jobs" / MADE.job
    folder.mkdir(parents=True)
    if request_ is not None:
        (folder / "request.json").write_text(request_)
    assert origin(settings, MADE) == Origin("digits", 3, 10)
