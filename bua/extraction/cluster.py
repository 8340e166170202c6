"""Extracts the regions of images on several machines. The images are divided into shards, each of which is a task of
Ray.

A task writes the features of its images into the folder of its shard, which gets its name only when it is complete.
All machines must share the file system of the output. If a machine is lost, its shards run again on another machine.
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
from bua.extraction.shards import Shard, ShardFolder, Written, explaining_write_errors, write_outcome
from bua.extraction.sources import ImageFile

# Number of images per shard.
SHARD_SIZE = 1000

# The file in a shard's folder that lists the images that failed.
FAILURES_FILE = "failures.jsonl"

# Number of times that Ray runs a task again when its worker or machine is lost.
TASK_RETRIES = 3

# Number of tasks that Ray has at a time: more than any cluster runs at once, and few enough that Ray does not keep a
# list of all images.
MAX_TASKS = 1000

logger = logging.getLogger(__name__)


@contextmanager
def connect_to_ray(
    config: ExtractorConfig, address: str, shards: ShardFolder, device: str, shard_size: int = SHARD_SIZE
) -> Iterator["RayCluster"]:
    """Connects to a Ray cluster for extraction, and disconnects after the block.

    Args:
        address: Address of the cluster as ``ray.init`` takes it: "auto", "host:port", or "local" for a cluster on this
            machine only.
        shards: Folder for the shards. All machines must see it, the images, and the files that ``config`` names, under
            the same paths.
        device: "cuda" (one GPU and one core per task) or "cpu" (one core per task).
        shard_size: Number of images per shard.

    Raises:
        InputError: Ray is not installed, or there is no cluster at ``address``.
    """
    # A cluster that is started here would send usage statistics to Ray's authors.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray: Ray is not installed; run `pip install ray`") from error
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--ray {address}: no cluster there ({reason}); start one with `ray start --head`") from error
    try:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray does not annotate it
        if torch.device(device).type == "cuda" and not resources.get("GPU"):
            logger.warning("--ray %s: no machine with a GPU yet; waiting for one (or add --device cpu)", address)
        yield RayCluster(config, shards, device, shard_size)
    finally:
        ray.shutdown()


class RayCluster:
    """Extracts on the Ray cluster that ``connect_to_ray`` has connected to."""

    def __init__(self, config: ExtractorConfig, shards: ShardFolder, device: str, shard_size: int):
        self.config, self.shard_size = _with_absolute_paths(config), shard_size
        self.shards = replace(shards, path=shards.path.absolute())
        self.device = torch.device(device).type

    def __call__(self, images: list[ImageFile]) -> Iterator[Outcome | Written | Shard]:
        """Yields for each image that it is written or why it failed, and each shard as soon as it is complete.

        Raises:
            InputError: A task cannot load the detector or write its shard.
        """
        make_folder(self.shards.path)
        parts = deque(images[i : i + self.shard_size] for i in range(0, len(images), self.shard_size))
        yield from self._extract(parts)

    def _extract(self, parts: deque[list[ImageFile]]) -> Iterator[Outcome | Written | Shard]:
        import ray

        # With max_calls 0 a worker process keeps its detector for further tasks, also on a GPU.
        task = ray.remote(
            num_cpus=1,
            num_gpus=1 if self.device == "cuda" else 0,
            max_retries=TASK_RETRIES,
            max_calls=0,
        )(write_shard)
        running: dict[ray.ObjectRef[None], tuple[list[ImageFile], Path]] = {}
        while parts or running:
            while parts and len(running) < MAX_TASKS:
                part = parts.popleft()
                shard = self.shards.new()
                images = [image._replace(path=os.path.abspath(image.path)) for image in part]
                running[task.remote(self.config, self.device, images, self.shards, shard)] = part, shard
            (done,), _ = ray.wait(list(running))
            part, shard = running.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                # If one image kills its worker every time, the other images of its shard must not fail with it.
                reason = f"its worker was lost {TASK_RETRIES + 1} times ({type(error).__name__})"
                logger.warning("a shard of %d images: %s", len(part), reason)
                if len(part) > 1:
                    parts.extendleft([part[: len(part) // 2], part[len(part) // 2 :]])
                else:
                    yield Outcome(part[0], None, reason)
            else:
                yield from _outcomes_in(shard, part)


def write_shard(
    config: ExtractorConfig, device: str, images: list[ImageFile], shards: ShardFolder, shard: Path
) -> None:
    """Runs in a Ray task: writes the features of ``images`` into the folder ``shard``, which is one of ``shards``.

    A task that Ray believes to be lost may still run at the same time as its successor. Therefore each writes a folder
    of its own, and the first to finish renames it to the shard's name.

    Raises:
        InputError: The detector cannot be loaded, or there is no room for the shard.
    """
    if shard.exists():
        return
    attempt = shard.with_name(f"{shard.stem}.{uuid.uuid4().hex}.attempt")
    try:
        with (
            explaining_write_errors(shards.path),
            shards.open(attempt) as writer,
            open(attempt / FAILURES_FILE, "w", encoding="utf-8") as failures,
        ):
            for outcome in _loaded_extractor(config, device)(images):
                result = write_outcome(writer, outcome)
                if isinstance(result, Outcome):
                    failures.write(json.dumps({"image_id": result.image.image_id, "reason": result.reason}) + "\n")
            # Another machine may merge the shard, and this one may be lost.
            writer.finish()
            failures.flush()
            os.fsync(failures.fileno())
        with explaining_write_errors(shards.path):
            try:
                attempt.rename(shard)
            except OSError:
                if not shard.exists():
                    raise
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


@functools.lru_cache(maxsize=1)
def _loaded_extractor(config: ExtractorConfig, device: str) -> Extractor:
    """Returns the extractor of ``config``, which is loaded for the first of the tasks of a worker process."""
    return Extractor.from_config(config, device)


def _outcomes_in(shard: Path, images: list[ImageFile]) -> Iterator[Outcome | Written | Shard]:
    """Yields for each of the images of a complete shard that it is written or why it failed, and then the shard."""
    lines = (shard / FAILURES_FILE).read_text(encoding="utf-8").splitlines()
    reasons = {failure["image_id"]: failure["reason"] for failure in map(json.loads, lines)}
    for image in images:
        reason = reasons.get(image.image_id)
        yield Written(image) if reason is None else Outcome(image, None, reason)
    yield Shard(shard)


def _with_absolute_paths(config: ExtractorConfig) -> ExtractorConfig:
    """Returns a configuration whose files are found from any working directory."""
    choice = config.choice
    if choice.boxes is not None:
        choice = replace(choice, boxes=os.path.abspath(choice.boxes))
    weights = config.weights if config.weights == RANDOM_WEIGHTS else os.path.abspath(config.weights)
    config_file = config.config_file and os.path.abspath(config.config_file)
    return replace(config, config_file=config_file, weights=weights, choice=choice)
