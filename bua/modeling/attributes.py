"""The attribute head (paper section 3.1; train.prototxt "cls_embedding" to "attr_score")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bua.modeling.losses import attribute_loss


class AttributePredictor(nn.Module):
    """Scores a region's attributes from its feature and an embedding of its class.

    The class is the true one in training and the most probable of all ``num_classes + 1``, background included, at
    test, as in the original. The last attribute is "no attribute", where the head has it.
    """

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        num_attributes: int,
        *,
        embedding_dim: int = 256,
        hidden_dim: int = 512,
        no_attribute_class: bool = True,
    ):
        """
        Args:
            feature_dim: of the pooled region feature.
            num_classes: object classes, without background.
            num_attributes: without "no attribute".
        """
        super().__init__()
        self.num_attributes = num_attributes
        self.no_attribute = num_attributes if no_attribute_class else None
        self.cls_embedding = nn.Embedding(num_classes + 1, embedding_dim)
        self.fc_attr = nn.Linear(feature_dim + embedding_dim, hidden_dim)
        self.attr_score = nn.Linear(hidden_dim, num_attributes + int(no_attribute_class))
        for layer in (self.cls_embedding, self.fc_attr, self.attr_score):
            nn.init.normal_(layer.weight, std=0.01)
        for layer in (self.fc_attr, self.attr_score):
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """Features [N, D] and classes [N] int64 to logits [N, num_attributes (+ 1)]."""
        joint = torch.cat([features, self.cls_embedding(classes)], dim=1)
        return self.attr_score(F.relu(self.fc_attr(joint)))

    def loss(self, features: Tensor, classes: Tensor, attributes: Tensor) -> Tensor:
        """``attribute_loss`` of regions with features [N, D], true classes [N] and attributes [N, M] int64, padded
        with -1."""
        return attribute_loss(self(features, classes), attributes, self.no_attribute)

    def probabilities(self, features: Tensor, classes: Tensor) -> Tensor:
        """Softmax over all classes of the head, [N, num_attributes] without "no attribute"."""
        return self(features, classes).float().softmax(dim=1)[:, : self.num_attributes]


def build_attribute_predictor(cfg, feature_dim: int) -> AttributePredictor | None:
    """The head that cfg.MODEL.BUA.ATTRIBUTES describes, for features [N, feature_dim]; None where it is disabled."""
    attributes = cfg.MODEL.BUA.ATTRIBUTES
    if not attributes.ENABLED:
        return None
    return AttributePredictor(
        feature_dim,
        cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        attributes.NUM_CLASSES,
        embedding_dim=attributes.EMBEDDING_DIM,
        hidden_dim=attributes.HIDDEN_DIM,
        no_attribute_class=attributes.NO_ATTRIBUTE_CLASS,
    )
