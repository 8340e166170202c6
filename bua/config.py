"""The configuration in Detectron2's schema: the keys that bua reads, and bua's own keys under ``MODEL.BUA``.

Both engines read the YAML files in ``configs/``: ``get_cfg()`` returns the torch engine's defaults, and
``add_bua_config(cfg)`` adds bua's own keys to a configuration of Detectron2.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from bua.config_files import find_config, read_config
from bua.config_values import as_list, check_architecture, check_ranges, check_type
from bua.errors import InputError
from bua.precision import check_float32_precision

CONVENTIONS = ("caffe", "detectron2")
FILES, FILE_FIELDS = "DATASETS.FILES", ("json", "images")
# The kinds of devices that bua runs on and that its tests cover.
DEVICES = ("cpu", "cuda")


def add_bua_config(cfg: CfgNode) -> None:
    """Adds bua's own keys to ``cfg`` in place.

    By default, the conventions are Detectron2's, and the attribute head is that of the original.
    """
    node = type(cfg)  # Detectron2's nodes are of a class of their own
    bua = cfg.MODEL.BUA = node()
    # "caffe": a box is x2-x1+1 wide, anchors are rounded and ordered by ratio, boxes are clipped to W-1, small boxes
    # are removed before the top k are taken, and boxes are suppressed at IoU >= the threshold. "detectron2": none of
    # these. Weights that were trained with one convention do not work with the other.
    bua.BOX_CONVENTION = "detectron2"
    # "caffe": cv2's linear interpolation of a float image, the same scale for both axes. "detectron2": PIL's bilinear
    # interpolation of a uint8 image.
    bua.RESIZE = "detectron2"
    # 3x3 max pooling of the stem. "caffe": no padding, and the size is rounded up. "detectron2": padding 1, and the
    # size is rounded down.
    bua.STEM_POOL = "detectron2"
    # 2: normalisation before each convolution, as in MILVLG's ResNet-152. 1: ResNet as first published, which all other
    # released detectors use.
    bua.RESNET_VERSION = 1
    # Prefixes of the names of frozen parameters, in addition to BACKBONE.FREEZE_AT.
    bua.FREEZE = []

    bua.ATTRIBUTES = node()
    bua.ATTRIBUTES.ENABLED = True
    bua.ATTRIBUTES.NUM_CLASSES = 400
    bua.ATTRIBUTES.EMBEDDING_DIM = 256
    bua.ATTRIBUTES.HIDDEN_DIM = 512
    bua.ATTRIBUTES.LOSS_WEIGHT = 0.5
    bua.ATTRIBUTES.MAX_PER_BOX = 16
    # True: the attribute head has an additional class "no attribute", which is the target of boxes without attributes,
    # as in the original. False: there is no such class, and the loss ignores these boxes, as in grid-feats-vqa.
    bua.ATTRIBUTES.NO_ATTRIBUTE_CLASS = True

    # VinVL's detector at test, by the names of its own configuration. NMS_FILTER is MODEL.ROI_HEADS.NMS_FILTER there,
    # and says how regions are chosen: ``bua.modeling.vinvl_filters`` has the three filters.
    bua.VINVL = node()
    bua.VINVL.NMS_FILTER = 1
    bua.VINVL.POSTPROCESS_ATTRIBUTES_THRESHOLD = 0.05
    bua.VINVL.MAX_NUM_ATTR_PER_OBJ = 16
    bua.VINVL.MAX_NUM_ATTR_PER_IMG = 100
    # Whether the six numbers of a region's place that Oscar reads are appended to its feature.
    bua.VINVL.SPATIAL_FEATURES = False

    # An EfficientDet of the package effdet (MODEL.META_ARCHITECTURE EfficientDet): the name of the model, the height
    # and width of its input in pixels, and what is different from that model: the backbone, as timm names it, the last
    # level of the feature pyramid, its channels and repetitions, those of the heads, and the size of the anchors in
    # strides. "" and 0 stand for the model's own.
    bua.EFFICIENTDET = node()
    bua.EFFICIENTDET.NAME = "tf_efficientdet_d1"
    bua.EFFICIENTDET.IMAGE_SIZE = (640, 640)
    bua.EFFICIENTDET.BACKBONE = ""
    bua.EFFICIENTDET.MAX_LEVEL = 0
    bua.EFFICIENTDET.FPN_CHANNELS = 0
    bua.EFFICIENTDET.FPN_REPEATS = 0
    bua.EFFICIENTDET.HEAD_REPEATS = 0
    bua.EFFICIENTDET.ANCHOR_SCALE = 0.0

    # Evaluations. KEEP_DETECTIONS: whether they write the detections to OUTPUT_DIR/evaluation in COCO's results format.
    # ZERO_ROWS: whether attributes are also scored at the original's rows of zeros by the protocol "original"
    # (``bua.detection.evaluation.zero_rows``).
    bua.EVALUATION = node()
    bua.EVALUATION.KEEP_DETECTIONS = True
    bua.EVALUATION.ZERO_ROWS = False

    # Features of the images of DATASETS.TEST that a training under Detectron2 writes into the folder OUTPUT, or "" for
    # none: after every PERIOD iterations (0 for never), and after the last one (``bua.d2.DumpFeatures``).
    bua.DUMP = node()
    bua.DUMP.OUTPUT = ""
    bua.DUMP.PERIOD = 0
    bua.DUMP.FORMAT = "tsv"
    bua.DUMP.MIN_BOXES = 10
    bua.DUMP.MAX_BOXES = 100

    # Releases of Detectron2 before this key do not have it.
    cfg.setdefault("FLOAT32_PRECISION", "")
    # Whether a flipped image's classes and attributes with "left" or "right" in their names are exchanged for those of
    # the mirror image. False: only the boxes are flipped, as in the original (lib/datasets/imdb.py,
    # append_flipped_images), whose classes and attributes have no such names. Set it for data that has.
    cfg.INPUT.FLIP_WORDS = False
    # Data sets of the user's own by their names, for DATASETS.TRAIN and DATASETS.TEST: a COCO file of boxes, and the
    # folder of its images, such as {"mine_train": {"json": "mine/train.json", "images": "mine/images"}}.
    cfg.DATASETS.FILES = node(new_allowed=True)

    # "SGD", with which all published detectors were trained, "Adam", "Adamax", "Adadelta" or "AdamW". AdamW, whose
    # weight decay is decoupled, learns faster from scratch.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Precision of the forward pass if SOLVER.AMP.ENABLED: "bfloat16" or "float16" (with loss scaling).
    cfg.SOLVER.AMP.DTYPE = "bfloat16"


def get_cfg() -> CfgNode:
    """Returns a new configuration with every key that the torch engine reads.

    The defaults are Detectron2's, except for the device, and the name and the number of classes of the ROI heads.
    """
    cfg = engine_cfg()
    cfg.VERSION = 2
    cfg.CUDNN_BENCHMARK = False

    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.PIXEL_MEAN = [103.530, 116.280, 123.675]
    cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]
    cfg.MODEL.MASK_ON = False

    cfg.MODEL.BACKBONE = CfgNode()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2

    # The torch engine does not support FPN. With these keys it can read such a file and report that.
    cfg.MODEL.FPN = CfgNode()
    cfg.MODEL.FPN.IN_FEATURES = []
    cfg.MODEL.FPN.OUT_CHANNELS = 256
    cfg.MODEL.FPN.NORM = ""
    cfg.MODEL.FPN.FUSE_TYPE = "sum"

    cfg.MODEL.RESNETS = CfgNode()
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.RESNETS.NUM_GROUPS = 1
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, False]  # res2, res3, res4, res5
    cfg.MODEL.RESNETS.DEFORM_MODULATED = False
    cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS = 1

    cfg.MODEL.ANCHOR_GENERATOR = CfgNode()
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.0

    cfg.MODEL.PROPOSAL_GENERATOR = CfgNode()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 0

    cfg.MODEL.RPN = CfgNode()
    cfg.MODEL.RPN.HEAD_NAME = "StandardRPNHead"
    cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    cfg.MODEL.RPN.BOUNDARY_THRESH = -1
    cfg.MODEL.RPN.IOU_THRESHOLDS = [0.3, 0.7]
    cfg.MODEL.RPN.IOU_LABELS = [0, -1, 1]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 256
    cfg.MODEL.RPN.POSITIVE_FRACTION = 0.5
    cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE = "smooth_l1"
    cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 1.0
    cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
    cfg.MODEL.RPN.SMOOTH_L1_BETA = 0.0
    cfg.MODEL.RPN.LOSS_WEIGHT = 1.0
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 12000
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 6000
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 2000
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 1000
    cfg.MODEL.RPN.NMS_THRESH = 0.7
    cfg.MODEL.RPN.CONV_DIMS = [-1]

    cfg.MODEL.ROI_HEADS = CfgNode()
    cfg.MODEL.ROI_HEADS.NAME = "AttributeRes5ROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1600
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.5]
    cfg.MODEL.ROI_HEADS.IOU_LABELS = [0, 1]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
    cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.25
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.5
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = True

    cfg.MODEL.ROI_BOX_HEAD = CfgNode()
    cfg.MODEL.ROI_BOX_HEAD.NAME = ""
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 0
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1024
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "smooth_l1"
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = 0.0
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 0
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignV2"

    cfg.INPUT = CfgNode()
    cfg.INPUT.MIN_SIZE_TRAIN = (800,)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    cfg.INPUT.MIN_SIZE_TEST = 800
    cfg.INPUT.MAX_SIZE_TEST = 1333
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.FORMAT = "BGR"

    cfg.DATASETS = CfgNode()
    cfg.DATASETS.TRAIN = ()
    cfg.DATASETS.TEST = ()

    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True

    cfg.TEST.DETECTIONS_PER_IMAGE = 100

    add_bua_config(cfg)
    return cfg


def engine_cfg() -> CfgNode:
    """Returns a new configuration with the keys that training any model reads, with Detectron2's defaults."""
    cfg = CfgNode()
    cfg.OUTPUT_DIR = "./output"
    cfg.SEED = -1
    # Precision of float32 matrix products and convolutions: "highest" computes in float32, "high" and "medium" allow
    # TF32 on a GPU (``bua.precision.set_float32_precision``). "" means "highest", in both engines: in Detectron2 itself
    # it means torch's default, which is TF32 for convolutions.
    cfg.FLOAT32_PRECISION = ""

    cfg.MODEL = CfgNode()
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.MODEL.WEIGHTS = ""

    cfg.DATALOADER = CfgNode()
    cfg.DATALOADER.NUM_WORKERS = 4

    cfg.SOLVER = CfgNode()
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    cfg.SOLVER.MAX_ITER = 40000
    cfg.SOLVER.BASE_LR = 0.001
    cfg.SOLVER.BASE_LR_END = 0.0
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.NESTEROV = False
    cfg.SOLVER.WEIGHT_DECAY = 0.0001
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = None
    cfg.SOLVER.BIAS_LR_FACTOR = 1.0
    cfg.SOLVER.GAMMA = 0.1
    cfg.SOLVER.STEPS = (30000,)
    cfg.SOLVER.WARMUP_FACTOR = 1.0 / 1000
    cfg.SOLVER.WARMUP_ITERS = 1000
    cfg.SOLVER.WARMUP_METHOD = "linear"
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.CLIP_GRADIENTS = CfgNode()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0
    cfg.SOLVER.AMP = CfgNode()
    cfg.SOLVER.AMP.ENABLED = False

    cfg.TEST = CfgNode()
    cfg.TEST.EVAL_PERIOD = 0
    return cfg


def load_cfg(config_file: str | Path, overrides: Sequence[str] = (), *, defaults: CfgNode | None = None) -> CfgNode:
    """Reads a configuration from a YAML file and from overrides.

    Args:
        config_file: A file, or the name of one in ``configs/``, such as "vg_r101.yaml". Its keys replace the defaults.
            If it names another file as ``_BASE_``, the keys of that file are applied before its own.
        overrides: ``KEY VALUE`` pairs, which are applied last.
        defaults: Configuration that is changed in place, by default ``get_cfg()``.

    Raises:
        InputError: The file does not exist or is not YAML, or a key is unknown, or a value has the wrong type or is out
            of range. The message names the file and the key.
    """
    cfg = get_cfg() if defaults is None else defaults
    merge(cfg, config_file, overrides)
    check_values(cfg, str(config_file))
    return cfg


def merge(cfg: CfgNode, config_file: str | Path, overrides: Sequence[str] = ()) -> None:
    """Applies a YAML file and ``KEY VALUE`` pairs to ``cfg`` in place. The errors are those of ``load_cfg``."""
    _merge_file(cfg, find_config(config_file))
    merge_overrides(cfg, overrides)


def check_device(device: str, source: str = "MODEL.DEVICE") -> None:
    """Checks that this machine has a device.

    Args:
        source: The configuration key or option that names the device, for the message.

    Raises:
        InputError: It is not a CPU or a GPU of CUDA, or it is a GPU that this machine does not have.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{source} is {device!r}, which is not a device; use cpu, cuda or cuda:N") from error
    if parsed.type not in DEVICES:
        raise InputError(f"{source} is {device!r}, which bua does not support; use cpu, cuda or cuda:N")
    found = torch.cuda.device_count()
    if parsed.type == "cuda" and (parsed.index or 0) >= found:
        raise InputError(f"{source} is {device!r}, but this machine has {found} GPUs; use cpu or another GPU")


def check_values(cfg: CfgNode, source: str) -> None:
    """Checks a detector's configuration.

    Args:
        source: Where its values come from, for messages.

    Raises:
        InputError: A value is unknown or out of its range, or a key is set that another MODEL.META_ARCHITECTURE reads.
    """
    check_float32_precision(cfg.FLOAT32_PRECISION, f"{source}: FLOAT32_PRECISION")
    for key in ("BOX_CONVENTION", "RESIZE", "STEM_POOL"):
        value = cfg.MODEL.BUA[key]
        if value not in CONVENTIONS:
            raise InputError(f"{source}: MODEL.BUA.{key} is {value!r}; use one of {', '.join(CONVENTIONS)}")
    check_numbers(cfg, source)
    check_architecture(cfg, get_cfg(), source)


def check_numbers(cfg: CfgNode, source: str) -> None:
    """Raises an InputError that names ``source`` if a number or a list in ``cfg`` is out of its range."""
    check_ranges(leaves(cfg), source)


def _merge_file(cfg: CfgNode, path: Path) -> None:
    for key, value in leaves(read_config(path)):
        _set(cfg, key, value, str(path))


def merge_overrides(cfg: CfgNode, pairs: Sequence[str]) -> None:
    """Applies ``KEY VALUE`` pairs to ``cfg`` in place. The errors are those of ``load_cfg``."""
    if len(pairs) % 2:
        raise InputError(f"command line: overrides must be pairs KEY VALUE; {pairs[-1]!r} has no value")
    for key, text in zip(pairs[::2], pairs[1::2]):
        try:
            value = as_list(key, CfgNode._decode_cfg_value(text))
        except (RecursionError, MemoryError):  # raised by ast.literal_eval for values that are nested too deep
            raise InputError(f"command line: {key}: its value is nested too deep") from None
        _set(cfg, key, value, "command line")


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields the dotted key and the value of every leaf."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(cfg: CfgNode, key: str, value: object, source: str) -> None:
    if "DATASETS" in cfg and (key == FILES or key.startswith(f"{FILES}.")):
        for leaf, path in leaves({key: value}):
            _set_file(cfg, leaf.split(".")[2:], path, source)
        return
    known = dict(leaves(cfg))
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        hint = f"; did you mean {close[0]}?" if close else "; see configs/ for the keys"
        raise InputError(f"{source}: unknown config key {key}{hint}")
    check_type(key, value, known[key], source)
    try:
        cfg.merge_from_list([key, value])
    except ValueError as error:
        raise InputError(f"{source}: {key}: {' '.join(str(error).split())}") from error


def _set_file(cfg: CfgNode, parts: list[str], path: object, source: str) -> None:
    """Sets a field of a data set in DATASETS.FILES. ``parts`` are the name of the data set and the field."""
    if len(parts) != 2 or parts[1] not in FILE_FIELDS or not isinstance(path, str):
        raise InputError(
            f"{source}: {'.'.join([FILES, *parts])}: give a data set as "
            "{'mine': {'json': 'mine.json', 'images': 'folder'}}"
        )
    name, field = parts
    cfg.DATASETS.FILES.setdefault(name, CfgNode(new_allowed=True))[field] = path
