"""Bottom-up attention (Anderson et al., CVPR 2018): the detector, its region features, and the tasks that use them."""

import os
from typing import Any

# After parallel work, OpenMP's threads wait actively for a while before they sleep. With the default wait, training on
# a CPU loses most of its speed as soon as other processes, such as data-loader workers, need the cores. With this
# shorter wait it keeps nine tenths of its speed on an otherwise idle machine. libgomp reads the variable when torch is
# imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.2.0.dev0"

__all__ = ["__version__", "pipeline"]


def __getattr__(name: str) -> Any:
    # PyTorch and the models are imported only when they are needed, so that the help of commands is shown at once.
    if name == "pipeline":
        from bua.pipelines import pipeline

        return pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
