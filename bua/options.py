"""The choices and defaults of options, for the parsers of commands.

This module imports nothing, so that a command can show its help without importing PyTorch. The modules that implement
an option import it from here, or tests/test_options.py compares it with theirs.
"""

ENGINES = ("detectron2", "torch")

# Exit code of a training that stopped because a loss was infinite or NaN.
TRAINING_FAILED = 1

# Extraction.
ON_ERROR = ("skip", "stop")
SHARD_SIZE = 1000
PRECISIONS = ("fp32", "tf32", "bf16")
FEATURES_FROM = ("detector", "crops")

# Features, in the order in which documents list them.
FORMATS = (
    "tsv",
    "lxmert-tsv",
    "npz",
    "hdf5",
    "ban-hdf5",
    "vilbert-lmdb",
    "vinvl-tsv",
    "oscar-tsv",
    "mmf",
    "grid-pth",
    "flat",
    "flat-fp16",
)

# The readers of which formats have flavours.
READERS = (
    "m2",
    "mcan",
    "mmf",
    "openvqa",
    "openvqa-gqa",
    "oscar-captioning",
    "oscar-retrieval",
    "uniter",
    "vilbert-multi-task",
    "volta",
)

# Comparison of features: the maximum distance between the sides of two boxes in pixels, the minimum cosine between two
# features, and the minimum share of regions with equal labels.
BOX_DISTANCE = 0.5
COSINE = 0.999
LABEL_AGREEMENT = 0.99

# Shapes.
SHAPES_VERSIONS = ("1.2", "1.4")

# VQA: an answer to fewer questions is left out, and a question is cut after this number of words.
ANSWER_MIN_COUNT = 9
QUESTION_LENGTH = 14
VQA_REVISIONS = ("2021", "2016")

# Captions.
TOKENIZERS = ("anderson", "karpathy", "wordpiece")
PHRASES_PER_CAPTION = 3
CAPTION_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D", "SPICE")
