"""Training of any model on any number of devices. Nothing here depends on what the model computes."""

from bua.engine.checkpoints import last_checkpoint
from bua.engine.launch import connect, launch, rendezvous
from bua.engine.losses import NonFiniteLoss
from bua.engine.optimizer import build_clip, build_optimizer, build_scheduler
from bua.engine.random_state import seed_everything, seed_run
from bua.engine.trainer import Trainer
from bua.precision import autocast_dtype

__all__ = [
    "NonFiniteLoss",
    "Trainer",
    "autocast_dtype",
    "build_clip",
    "build_optimizer",
    "build_scheduler",
    "connect",
    "last_checkpoint",
    "launch",
    "rendezvous",
    "seed_everything",
    "seed_run",
]
