"""Extracts the regions of images on several machines. The images are divided into shards, each of which is a task of
Ray.

A task writes the features of its images into the folder of its shard, which gets its name only when it is complete.
All machines must share the file system of the output. If a machine is lost, its shards run again on another machine. If
the whole cluster is lost, the run ends, and the next one continues with the shards that are complete.
"""

import functools
import json
import logging
import os
import queue
import shutil
import signal
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bua.errors import InputError, make_folder
from bua.extraction.extractor import Extractor, Outcome
from bua.extraction.extractor_config import RANDOM_WEIGHTS, TORCHVISION, ExtractorConfig
from bua.extraction.shards import Shard, ShardFolder, Written, explaining_write_errors, write_outcome
from bua.extraction.sources import ImageFile
from bua.options import SHARD_SIZE

# The file in a shard's folder that lists the images that failed.
FAILURES_FILE = "failures.jsonl"

# Number of times that a task runs again after its worker died. Then its images are divided.
TASK_RETRIES = 3

# Number of images at which workers may die, and of machines that may be lost at one shard, one after the other. After
# more of them, the cause is hardly the images, and the run ends.
MAX_BLAMED = MAX_LOSSES = 10

# Seconds between looks at the cluster.
POLL_SECONDS = 5.0

# Seconds that the head of the cluster has to answer. After a minute, Ray would end this process.
HEAD_SECONDS = 30.0

# Seconds to wait for a new machine after the last one was lost.
MACHINE_SECONDS = 60.0

_ATTEMPT = ".attempt"

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
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _check_head(address)
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many types, among them Exception itself
        reason = " ".join(str(error).split())
        named = os.environ.get("RAY_ADDRESS") if address == "auto" else None
        advice = f", or change RAY_ADDRESS, which is {named}" if named else ""
        raise InputError(
            f"--ray {address}: no cluster there ({reason}); start one with `ray start --head`{advice}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init sets one that ends the process with exit code 15
    try:
        yield RayCluster(config, shards, device, shard_size)
    finally:
        ray.shutdown()


def _check_head(address: str) -> None:
    """Raises an OSError if the head of the cluster at ``address`` accepts no connection.

    ``ray.init`` would try to reach it for a quarter of an hour. A head that was killed leaves its address in Ray's
    folder, where "auto" finds it.
    """
    try:
        # Ray has no public function for this. If another version of Ray lacks it, ray.init alone looks for the head.
        from ray._private.services import canonicalize_bootstrap_address as find_head
    except ImportError:
        return
    if "://" in address or (address == "auto" and "://" in os.environ.get("RAY_ADDRESS", "")):
        return  # a server of Ray Client, for which ray.init has a limit of its own
    head = find_head(address)
    if head is None:  # a cluster that ray.init starts
        return
    host, _, port = head.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_SECONDS).close()
    except OSError as error:
        raise OSError(f"{head} cannot be reached: {error.strerror or error}") from error


class RayCluster:
    """Extracts on the Ray cluster that ``connect_to_ray`` has connected to.

    The shard of a worker process that dies is tried again, then divided. An image is marked as failed if workers die at
    it alone, on machines that live. The shards of a machine that is lost wait for another machine.
    """

    def __init__(self, config: ExtractorConfig, shards: ShardFolder, device: str, shard_size: int):
        self.config, self.shard_size = _with_absolute_paths(config), shard_size
        self.shards = replace(shards, path=shards.path.absolute())
        self.device = torch.device(device).type

    def __call__(self, images: list[ImageFile]) -> Iterator[Outcome | Written | Shard]:
        """Yields for each image that it is written or why it failed, and each shard as soon as it is complete.

        Raises:
            InputError: A task cannot load the detector or write its shard, or the cluster is lost: no machine is left,
                or its head or the Ray processes of this machine have ended.
        """
        import ray

        make_folder(self.shards.path)
        waiting = deque(
            _Part(images[i : i + self.shard_size], self.shards.new()) for i in range(0, len(images), self.shard_size)
        )
        try:
            yield from self._extract(waiting)
        except ray.exceptions.LocalRayletDiedError as error:
            raise InputError(
                "--ray: the Ray processes of this machine have ended; start them again and run the same command again "
                "to continue"
            ) from error
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            raise InputError(
                f"--ray: the cluster failed ({type(error).__name__}: {' '.join(str(error).split())[:200]}); run the "
                "same command again to continue"
            ) from error

    def _extract(self, waiting: deque["_Part"]) -> Iterator[Outcome | Written | Shard]:
        import ray

        # With max_calls 0 a worker process keeps its detector for further tasks, also on a GPU. Ray itself would retry
        # alike after the death of a worker and that of a machine.
        task = ray.remote(num_cpus=1, num_gpus=1 if self.device == "cuda" else 0, max_retries=0, max_calls=0)(
            write_shard
        )
        machines = _Machines(self.device)
        running: dict[ray.ObjectRef[None], _Part] = {}
        blamed = 0
        while waiting or running:
            while waiting and len(running) < MAX_TASKS:
                part = waiting.popleft()
                images = [image._replace(path=os.path.abspath(image.path)) for image in part.images]
                running[task.remote(self.config, self.device, images, self.shards, part.shard)] = part
            done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            machines.check()
            for reference in done:
                part = running.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, InputError):
                        raise error.cause from None
                    raise
                except ray.exceptions.NodeDiedError:
                    waiting.appendleft(self._after_lost_machine(part))
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                    if self._remove_attempts(part) - machines.living():
                        # A machine that ends may still end its processes itself.
                        waiting.appendleft(self._after_lost_machine(part))
                        continue
                    part.deaths += 1
                    if part.deaths <= TASK_RETRIES:
                        waiting.appendleft(part)
                        continue
                    reason = f"its worker was lost {part.deaths} times ({type(error).__name__})"
                    logger.warning("a shard of %d images: %s", len(part.images), reason)
                    if len(part.images) > 1:
                        # If one image kills its worker every time, the other images must not fail with it.
                        waiting.extendleft(_Part(half, self.shards.new()) for half in reversed(part.halves()))
                        continue
                    if (blamed := blamed + 1) > MAX_BLAMED:
                        raise InputError(
                            f"--ray: workers died at {blamed} images one after the other ({type(error).__name__}), so "
                            "that the cause is not one image; run the same command again to continue"
                        ) from error
                    yield Outcome(part.images[0], None, reason)
                else:
                    blamed = 0
                    yield from _outcomes_in(part.shard, part.images)

    def _after_lost_machine(self, part: "_Part") -> "_Part":
        part.losses += 1
        logger.warning("a machine was lost; its shard of %d images waits for another", len(part.images))
        if part.losses > MAX_LOSSES:
            raise InputError(
                f"--ray: {part.losses} machines were lost one after the other while they worked on the shard of "
                f"{part.images[0].path}; run the same command again to continue"
            )
        return part

    def _remove_attempts(self, part: "_Part") -> set[str]:
        """Removes what a worker that died has left of a shard, and returns the ids of the nodes that it ran on."""
        attempts = list(self.shards.path.glob(f"{part.shard.stem}.*{_ATTEMPT}"))
        for attempt in attempts:
            shutil.rmtree(attempt, ignore_errors=True)
        return {attempt.name.split(".")[1] for attempt in attempts}


@dataclass
class _Part:
    """Images that one task extracts.

    Attributes:
        shard: The folder that the task writes.
        deaths: Number of workers that died at it.
        losses: Number of machines that were lost while they worked on it.
    """

    images: list[ImageFile]
    shard: Path
    deaths: int = 0
    losses: int = 0

    def halves(self) -> list[list[ImageFile]]:
        middle = len(self.images) // 2
        return [self.images[:middle], self.images[middle:]]


class _Machines:
    """The machines of the cluster, as its head sees them."""

    def __init__(self, device: str):
        self._resource = "GPU" if device == "cuda" else "CPU"
        self._last_check = self._last_usable = float("-inf")

    def check(self) -> None:
        """Raises an InputError if the head of the cluster does not answer, or if all machines have been lost that could
        run a task. It waits some time for new ones, and without limit for the first one."""
        now = time.monotonic()
        if now - self._last_check < POLL_SECONDS:
            return
        nodes = self._nodes()
        self._last_check = time.monotonic()
        if any(node["Alive"] and node["Resources"].get(self._resource, 0) >= 1 for node in nodes):
            self._last_usable = self._last_check
        elif self._last_usable == float("-inf"):
            self._last_usable = float("inf")
            logger.warning("--ray: no machine with a %s yet; waiting for one (or change --device)", self._resource)
        elif self._last_check - self._last_usable > MACHINE_SECONDS:
            raise InputError("--ray: no machine is left; start some, and run the same command again to continue")

    def living(self) -> set[str]:
        """Returns the ids of the nodes that live."""
        return {node["NodeID"] for node in self._nodes() if node["Alive"]}

    def _nodes(self) -> list[dict[str, Any]]:
        import ray

        # Ray waits for a head that does not answer, and after a minute it ends this process.
        answers: queue.SimpleQueue[list[dict[str, Any]] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(ray.nodes())  # type: ignore[no-untyped-call]  # Ray does not annotate it
            except Exception as error:  # Ray does not say what it raises
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer = answers.get(timeout=HEAD_SECONDS)
        except queue.Empty:
            answer = TimeoutError(f"no answer for {HEAD_SECONDS} seconds")
        if isinstance(answer, Exception):
            raise InputError(
                f"--ray: the head of the cluster is lost ({' '.join(str(answer).split())[:200]}); run the same command "
                "again to continue"
            ) from answer
        return answer


def write_shard(
    config: ExtractorConfig, device: str, images: list[ImageFile], shards: ShardFolder, shard: Path
) -> None:
    """Runs in a Ray task: writes the features of ``images`` into the folder ``shard``, which is one of ``shards``.

    A task that Ray believes to be lost may still run at the same time as its successor. Therefore each writes a folder
    of its own, and the first to finish renames it to the shard's name.

    Raises:
        InputError: The detector cannot be loaded, or there is no room for the shard.
    """
    import ray

    if shard.exists():
        return
    node = ray.get_runtime_context().get_node_id()
    attempt = shard.with_name(f"{shard.stem}.{node}.{uuid.uuid4().hex}{_ATTEMPT}")
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
    weights = _absolute(config.weights)
    config_file = config.config_file
    if config_file is not None and os.path.isfile(config_file):  # not a name in configs/ or in Detectron2's model zoo
        config_file = os.path.abspath(config_file)
    boxes_from = None if config.boxes_from is None else _with_absolute_paths(config.boxes_from)
    return replace(
        config,
        config_file=config_file,
        weights=weights,
        choice=choice,
        boxes_from=boxes_from,
        crop_weights=_absolute(config.crop_weights),
    )


def _absolute(weights: str) -> str:
    """Returns the absolute path of a file of weights, and other weights unchanged."""
    is_name = weights in ("", RANDOM_WEIGHTS) or weights.startswith(TORCHVISION)
    return weights if is_name else os.path.abspath(weights)
