"""Bottom-up attention (Anderson et al., CVPR 2018): the detector, its region features, and what lives on them."""

import os

# OpenMP's threads keep a core busy for a while before they sleep; by default so long that, where other processes
# (data-loader workers, say) want the cores, training on a CPU loses most of its speed. This short wait keeps nine
# tenths of the speed of an otherwise idle machine. libgomp reads it when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
