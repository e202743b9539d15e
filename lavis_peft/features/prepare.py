"""From a run's datasets to datasets that read features: what is missing is computed, shared among the processes."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavis_peft.errors import ConfigError
from lavis_peft.features.config import check_processors
from lavis_peft.features.digests import FileDigests
from lavis_peft.features.encoder import Encoder
from lavis_peft.features.filling import Filling, Job
from lavis_peft.features.room import check_room, free_bytes, size_text
from lavis_peft.features.space import Space
from lavis_peft.features.spec import CacheSpec
from lavis_peft.features.store import Store
from lavis_peft.features.transforms import description, random_steps
from lavis_peft.features.use import CachedFeatures, draw_of, key_of
from lavis_peft.runners import distributed
from lavis_peft.runners.agreement import agreed
from lavis_peft.runners.progress import progress_bar

_log = logging.getLogger(__name__)


@dataclass
class _Kind:
    """Datasets whose pictures are transformed alike, and the features of these."""

    space: Space
    store: Store
    processor: Any
    views: int
    random: bool
    datasets: list[Any]


def prepare(spec: CacheSpec, datasets: Iterable[Any], filling: Filling) -> dict[str, int]:
    """Fill a cache with the features of datasets, let them read these, and put the encoder away.

    Every process of a run must call it.

    Args:
        spec: The cache.
        datasets: The plugin's, or LAVIS's ConcatDatasets of them.
        filling: How features are computed.

    Returns:
        How many features there are to be: ``pictures``, and how many were ``computed`` by all processes.

    Raises:
        UserError: As `Filling.fill`, or the folder can't be used.
    """
    parts = [part for each in datasets for part in getattr(each, "datasets", [each])]
    foreign = sorted({type(part).__name__ for part in parts if not hasattr(part, "use_features")})
    if foreign:
        raise ConfigError(f"run.feature_cache: needs datasets of the plugin's, found {', '.join(foreign)}")
    if problem := spec.folder_problem():
        raise ConfigError(problem)
    encoder = filling.encoder
    remembered = FileDigests(spec.folder / "files")
    kinds = _kinds(spec, parts, encoder, remembered)
    where = {os.path.abspath(record.image): record.where for part in parts for record in part.records}
    digests = _digests(remembered, list(where))
    wanted = [_jobs(kind, digests, where) for kind in kinds]
    # By the main process: another run may write to the cache meanwhile, and all must share out the same.
    missing = distributed.from_main(
        [[key for key in jobs if key not in kind.store] for jobs, kind in zip(wanted, kinds, strict=True)]
    )
    count, total = sum(map(len, missing)), sum(map(len, wanted))
    _announce(spec, kinds, count, total)
    if count:
        _fill(kinds, [[jobs[key] for key in keys if key in jobs] for jobs, keys in zip(wanted, missing, strict=True)],
              filling, count)  # fmt: skip
    for kind in kinds:
        kind.store.reload()
        for part in kind.datasets:
            part.use_features(CachedFeatures(kind.store, digests, kind.views))
    absent = sum(key not in kind.store for kind, jobs in zip(kinds, wanted, strict=True) for key in jobs)
    if absent:
        _log.warning(
            "Feature cache: %d features aren't there; these pictures are encoded whenever they come up", absent
        )
    encoder.put_away(next((known for kind in kinds if (known := kind.space.fingerprint())), None))
    return {"pictures": total, "computed": count}


def _kinds(spec: CacheSpec, parts: Iterable[Any], encoder: Encoder, remembered: FileDigests) -> list[_Kind]:
    identity = encoder.identity(remembered)
    found: dict[str, _Kind] = {}
    for part in parts:
        processor = part.vis_processor
        check_processors(spec, {"vis_processor": processor}, type(part).__name__)
        is_random = bool(random_steps(processor))
        space = Space(spec.folder, identity, description(processor), encoder.shape, spec.dtype)
        if space.folder.name not in found:
            views = max(1, spec.augmentations) if is_random else 1
            found[space.folder.name] = _Kind(space, space.store(), processor, views, is_random, [])
        found[space.folder.name].datasets.append(part)
    return list(found.values())


def _digests(remembered: FileDigests, paths: list[str]) -> dict[str, bytes]:
    """The digest of every picture that can be read; each process reads its share."""
    share = paths[distributed.rank() :: distributed.world_size()]
    with progress_bar(len(share), "pictures") as bar:
        found = remembered.of_all(share, lambda: None if bar is None else bar.update())
    if distributed.world_size() == 1:
        return found
    distributed.barrier()
    remembered.reload()
    return remembered.of_all(paths)


def _jobs(kind: _Kind, digests: Mapping[str, bytes], where: Mapping[str, str]) -> dict[bytes, Job]:
    jobs: dict[bytes, Job] = {}
    for part in kind.datasets:
        for path in dict.fromkeys(os.path.abspath(record.image) for record in part.records):
            if (digest := digests.get(path)) is None:
                continue  # who opens it says what is wrong with it
            for view in range(kind.views):
                draw = draw_of(digest, view) if kind.random else ""
                jobs.setdefault(key_of(digest, view), Job(key_of(digest, view), digest, path, where[path], draw))
    return jobs


def _announce(spec: CacheSpec, kinds: list[_Kind], count: int, total: int) -> None:
    each = kinds[0].store.entry_bytes if kinds else 0
    if not count:
        _log.info("Feature cache %s: all %d features are there", spec.folder, total)
        return
    _log.info(
        "Feature cache %s: %d of %d features are to be computed, %s each, %s in all; %s are free",
        spec.folder, count, total, size_text(each), size_text(count * each), size_text(free_bytes(spec.folder)),
    )  # fmt: skip

    def check() -> None:
        check_room(spec.folder, count * each)
        try:
            spec.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.feature_cache: {spec.folder}: can't be made: {error.strerror}") from error
        if not os.access(spec.folder, os.W_OK | os.X_OK):
            raise ConfigError(f"run.feature_cache: {spec.folder}: no permission to write to it, and it isn't complete")

    agreed(check)


def _fill(kinds: Sequence[_Kind], missing: Sequence[Sequence[Job]], filling: Filling, count: int) -> None:
    with progress_bar(count, "features") as bar:

        def done(pictures: int) -> None:
            if bar is not None:
                bar.update(pictures * distributed.world_size())

        for kind, jobs in zip(kinds, missing, strict=True):
            own = jobs[distributed.rank() :: distributed.world_size()]
            filling.fill(kind.space, kind.store, own, kind.processor, done)
    distributed.barrier()
    _log.info("Feature cache: %d features are computed", count)
