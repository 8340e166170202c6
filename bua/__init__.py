"""Bottom-up attention (Anderson et al., CVPR 2018): the detector, its region features, and what lives on them."""

__version__ = "0.1.0"
