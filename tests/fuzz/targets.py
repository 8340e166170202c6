"""All targets of the fuzzers by their names."""

import checkpoint_targets
import command_targets
import feature_targets
import image_targets
import json_targets
from cases import Target

TARGETS: dict[str, Target] = {
    **image_targets.TARGETS,
    **feature_targets.TARGETS,
    **checkpoint_targets.TARGETS,
    **json_targets.TARGETS,
    **command_targets.TARGETS,
}
KINDS = tuple(dict.fromkeys(target.kind for target in TARGETS.values()))
