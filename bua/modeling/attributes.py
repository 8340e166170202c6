"""The attribute head (paper section 3.1; train.prototxt "cls_embedding" to "attr_score")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bua.modeling.losses import attribute_loss


class AttributePredictor(nn.Module):
    """Scores a region's attributes from its feature and an embedding of its class.

    In training the class is the annotated one; at test it is the most probable of all ``num_classes + 1`` classes,
    including background, as in the original. The last attribute is "no attribute" if the head has that class.
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
            feature_dim: Dimension of the pooled region features.
            num_classes: Number of object classes, without background.
            num_attributes: Number of attributes, without "no attribute".
            embedding_dim: Dimension of the embedding of the class.
            hidden_dim: Number of hidden units.
            no_attribute_class: Whether the head has the class "no attribute".
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
        """Returns logits [N, num_attributes (+ 1)] for features [N, D] and classes [N] int64."""
        joint = torch.cat([features, self.cls_embedding(classes)], dim=1)
        return self.attr_score(F.relu(self.fc_attr(joint)))

    def loss(self, features: Tensor, classes: Tensor, attributes: Tensor) -> Tensor:
        """Returns ``attribute_loss`` of regions with features [N, D], annotated classes [N] and attributes [N, M]
        int64, padded with -1."""
        return attribute_loss(self(features, classes), attributes, self.no_attribute)

    def probabilities(self, features: Tensor, classes: Tensor) -> Tensor:
        """Returns the softmax over the head's classes without the column of "no attribute": [N, num_attributes]."""
        return self(features, classes).float().softmax(dim=1)[:, : self.num_attributes]


def build_attribute_predictor(cfg, feature_dim: int) -> AttributePredictor | None:
    """Returns the head that cfg.MODEL.BUA.ATTRIBUTES describes, for features [N, feature_dim]; None if it is
    disabled."""
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
