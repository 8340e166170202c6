"""From images to their regions on many machines: shards of the work as Ray's tasks.

Every task writes the features of its images into a shard, a folder that gets its name when it is whole. The
machines must share the file system in which the output lies. A shard of a machine that is lost runs again elsewhere;
shards that an interrupted run left behind are used.
"""

import functools
import json
import logging
import os
import shutil
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from bua.errors import InputError, make_folder
from bua.extraction.extractor import Extractor, Outcome
from bua.extraction.extractor_config import RANDOM_WEIGHTS, ExtractorConfig
from bua.extraction.sources import ImageFile
from bua.features import open_features, open_writer

SHARD_SIZE = 1000

FAILURES = "failures.jsonl"

# Of one task, when its worker or machine is lost.
RETRIES = 3

# Tasks that Ray has at a time: more than any cluster runs, few enough that it need not keep a list of all images.
TASKS = 1000

logger = logging.getLogger(__name__)


@contextmanager
def on_ray(
    config: ExtractorConfig, address: str, folder: Path, device: str, shard_size: int = SHARD_SIZE
) -> Iterator["Cluster"]:
    """A Ray cluster that extracts; the connection ends with the block.

    Args:
        address: of the cluster as ``ray.init`` takes it: "auto", "host:port", or "local" for this machine alone.
        folder: where shards are written; all machines must see it, the images and the files that ``config`` names
            under these paths.
        device: "cuda" (a GPU a task) or "cpu" (a core a task).
        shard_size: images a shard.

    Raises:
        InputError: Ray is not installed, or there is no cluster at ``address``.
    """
    # Ray's reports to its makers, which a cluster that is started here would send.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray: Ray is not installed; pip install 'bua[ray]'") from error
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--ray {address}: no cluster there ({reason}); start one with `ray start --head`") from error
    try:
        if torch.device(device).type == "cuda" and not ray.cluster_resources().get("GPU"):
            logger.warning("--ray %s: no machine with a GPU yet; waiting for one (or add --device cpu)", address)
        yield Cluster(config, folder, device, shard_size)
    finally:
        ray.shutdown()


class Cluster:
    """Extracts on a Ray cluster that ``on_ray`` has joined."""

    def __init__(self, config: ExtractorConfig, folder: Path, device: str, shard_size: int):
        self.config, self.folder, self.shard_size = _anywhere(config), folder.absolute(), shard_size
        self.device = torch.device(device).type

    def __call__(self, images: list[ImageFile]) -> Iterator[Outcome]:
        """The outcome of each image, shard by shard as they get whole.

        Raises:
            InputError: a task cannot load the detector or write its shard.
        """
        make_folder(self.folder)
        missing = {image.image_id: image for image in images}
        for shard in sorted(self.folder.glob("*.shard")):
            # What failed then is tried again.
            yield from _regions(shard, missing)
        rest = list(missing.values())
        parts = deque(rest[i : i + self.shard_size] for i in range(0, len(rest), self.shard_size))
        yield from self._extract(parts, missing)

    def remove(self) -> None:
        """Removes the shards, when what they hold lies safely elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _extract(self, parts: deque[list[ImageFile]], missing: dict[int | str, ImageFile]) -> Iterator[Outcome]:
        import ray

        resource = "num_gpus" if self.device == "cuda" else "num_cpus"
        # max_calls 0: a worker keeps its detector for further tasks, with a GPU too.
        task = ray.remote(max_retries=RETRIES, max_calls=0, **{resource: 1})(write_shard)
        running = {}
        while parts or running:
            while parts and len(running) < TASKS:
                part = parts.popleft()
                shard = self.folder / f"{uuid.uuid4().hex}.shard"
                running[
                    task.remote(
                        self.config,
                        self.device,
                        [image._replace(path=os.path.abspath(image.path)) for image in part],
                        shard,
                    )
                ] = part, shard
            (done,), _ = ray.wait(list(running))
            part, shard = running.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                # An image that kills its worker every time must not take the others of its shard with it.
                reason = f"its worker was lost {RETRIES + 1} times ({type(error).__name__})"
                logger.warning("a shard of %d images: %s", len(part), reason)
                if len(part) > 1:
                    parts.extendleft([part[: len(part) // 2], part[len(part) // 2 :]])
                else:
                    yield Outcome(missing.pop(part[0].image_id), None, reason)
            else:
                yield from _outcomes(shard, missing)


def write_shard(config: ExtractorConfig, device: str, images: list[ImageFile], shard: Path) -> None:
    """Runs in a Ray task: writes the features of ``images`` into the folder ``shard``.

    A task that was taken for lost may still run while its successor does: each writes a folder of its own, and the
    first to be done gives it the shard's name.

    Raises:
        InputError: the detector cannot be loaded, or there is no room for the shard.
    """
    if shard.exists():
        return
    attempt = shard.with_name(f"{shard.stem}.{uuid.uuid4().hex}.attempt")
    try:
        with (
            open_writer(attempt / "features", "flat") as writer,
            open(attempt / FAILURES, "w", encoding="utf-8") as failures,
        ):
            for image, regions, reason in _extractor(config, device)(images):
                if regions is not None:
                    writer.append(regions)
                else:
                    failures.write(json.dumps({"image_id": image.image_id, "reason": reason}) + "\n")
            writer.finish()
            failures.flush()
            os.fsync(failures.fileno())
        try:
            attempt.rename(shard)
        except OSError:
            if not shard.exists():
                raise
    except OSError as error:
        raise InputError(f"{shard.parent}: cannot be written: {error.strerror or error}; make room") from error
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


@functools.lru_cache(maxsize=1)
def _extractor(config: ExtractorConfig, device: str) -> Extractor:
    # Ray gives a worker process task after task; the detector is loaded for the first.
    return Extractor(config.load(device), config.choice, batch_size=config.batch_size, num_workers=config.num_workers)


def _outcomes(shard: Path, missing: dict[int | str, ImageFile]) -> Iterator[Outcome]:
    yield from _regions(shard, missing)
    for line in (shard / FAILURES).read_text(encoding="utf-8").splitlines():
        failure = json.loads(line)
        if image := missing.pop(failure["image_id"], None):
            yield Outcome(image, None, failure["reason"])


def _regions(shard: Path, missing: dict[int | str, ImageFile]) -> Iterator[Outcome]:
    """What a shard has of the ``missing`` images, which are then no longer missing."""
    store = open_features(shard / "features")
    for image_id in store:
        if image := missing.pop(image_id, None):
            yield Outcome(image, store[image_id])


def _anywhere(config: ExtractorConfig) -> ExtractorConfig:
    """A config whose files are found from any working directory."""
    choice = config.choice
    if choice.boxes is not None:
        choice = replace(choice, boxes=os.path.abspath(choice.boxes))
    weights = config.weights if config.weights == RANDOM_WEIGHTS else os.path.abspath(config.weights)
    return replace(config, config_file=os.path.abspath(config.config_file), weights=weights, choice=choice)
