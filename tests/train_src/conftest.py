"""A finished training job of each family, made once for all tests of the container's code."""

from pathlib import Path

import pytest
from tiny_jobs import ROWS, JobMaker, run_job, write_job
from tiny_models import tiny_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny base model of each family."""
    return {family: tiny_model(tmp_path_factory.mktemp(family), family) for family in ("causal", "seq2seq")}


@pytest.fixture(scope="session")
def finished(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base folder of a finished job of each family."""
    jobs = {}
    for family, model in models.items():
        base = tmp_path_factory.mktemp(f"job-{family}") / "ml"
        jobs[family] = write_job(base, model, ROWS, epochs=3, model_id=f"tiny-{family}", dataset_sha256="abc123")
        assert run_job(base) == 0
    return jobs


@pytest.fixture
def make_job(tmp_path: Path, models: dict[str, Path]) -> JobMaker:
    """Lay out a new job in the test's own folder."""

    def make(name: str = "ml", kind: str = "causal", rows: list[dict[str, str]] = ROWS, **values: object) -> Path:
        return write_job(tmp_path / name, models[kind], rows, **values)

    return make
