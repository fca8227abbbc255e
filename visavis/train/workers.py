"""Many files looked at side by side: in processes of this machine, or as a Ray Data job."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from visavis.errors import ConfigError
from visavis.train.survey import Source, Survey, kept_facts, survey, write_survey

Progress = Callable[[int, int], None]


def survey_all(
    sources: list[Source], jobs: int = 1, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Facts of every file, in order, by ``jobs`` processes.

    A file that kills its process is tried once more alone, and refused if it does so again.
    """
    found, todo = _split(sources)
    if progress and found:
        progress(len(found), len(sources))
    if not todo:
        return [found[i] for i in range(len(sources))]
    broken: list[int] = []
    with _pool(min(jobs, len(todo))) as pool:
        tasks = {pool.submit(survey, sources[i]): i for i in todo}
        for task in as_completed(tasks):
            if isinstance(task.exception(), BrokenProcessPool):
                broken.append(tasks[task])
                continue
            found[tasks[task]] = task.result()
            if progress:
                progress(len(found), len(sources))
    for i in sorted(broken):
        with _pool(1) as pool:
            task = pool.submit(survey, sources[i])
            crashed = isinstance(task.exception(), BrokenProcessPool)
        found[i] = _crashed(sources[i]) if crashed else task.result()
        if progress:
            progress(len(found), len(sources))
    return [found[i] for i in range(len(sources))]


def survey_all_with_ray(
    sources: list[Source], jobs: int = 2, progress: Progress | None = None, address: str = ""
) -> list[dict[str, Any]]:
    """Facts of every file, in order, by Ray Data.

    Args:
        sources: files; they and the output folder must have the same path on every machine.
        jobs: processes of a Ray started here.
        progress: called with files done and files in all.
        address: of a running cluster, which is joined; ``jobs`` is then not used.

    Raises:
        ConfigError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--ray needs Ray: pip install 'visavis[scale]'")
    found, todo = _split(sources)
    if progress and found:
        progress(len(found), len(sources))
    if not todo:
        return [found[i] for i in range(len(sources))]
    import ray

    mine = not ray.is_initialized()
    if mine:
        here = {"num_cpus": jobs, "object_store_memory": 100_000_000, "include_dashboard": False}
        where = {"address": address} if address else here
        ray.init(**where, log_to_driver=False, logging_level="WARNING", configure_logging=False)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = [{"index": i, **vars(sources[i])} for i in todo]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        results = dataset.map(survey_row, num_cpus=1)
        for row in results.iter_rows():
            found[row["index"]] = json.loads(row["facts"])
            if progress:
                progress(len(found), len(sources))
    finally:
        if mine:
            ray.shutdown()
    return [found[i] for i in range(len(sources))]


def survey_row(row: dict[str, Any]) -> dict[str, Any]:
    """One row of the Ray job: the fields of a ``Source`` and its index."""
    index = row.pop("index")
    # As text: Arrow would give every row the keys of all.
    return {"index": index, "facts": json.dumps(survey(Source(**row)))}


def _split(sources: list[Source]) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """Facts kept from an earlier run, and the indices of the files still to be looked at."""
    kept = {i: kept_facts(source) for i, source in enumerate(sources)}
    return {i: f for i, f in kept.items() if f}, [i for i, f in kept.items() if not f]


def _pool(jobs: int) -> ProcessPoolExecutor:
    # Spawned, not forked: OpenVINO and OpenCV hold threads.
    return ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn"))


def _crashed(source: Source) -> dict[str, Any]:
    """Keep the verdict without a stamp, so that the next run tries again."""
    facts = {"name": Path(source.kept).name, "error": "the process that read it died"}
    write_survey(Survey(dict(facts)), Path(source.kept))
    return facts | {"fresh": True}
