"""ROI heads that only infer: the features of ``AttributeRes5ROIHeads`` with fewer and larger operations."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from bua.modeling.backbone import Bottleneck, PreActivationBottleneck
from bua.modeling.roi_heads import AttributeRes5ROIHeads, pool_regions
from bua.modeling.windows import distinct_windows, roi_windows, window_maxima


class InferenceROIHeads(AttributeRes5ROIHeads):
    """Computes the features of ``AttributeRes5ROIHeads`` faster, and cannot be trained.

    The regions of all feature maps run through res5 together, in steps. With RoIPool, the first layers of res5 are
    computed once for each distinct window of a feature map instead of once for each bin of each region
    (``bua.modeling.windows``).
    """

    conv2_taps: Tensor

    def __init__(self, trained: AttributeRes5ROIHeads, *, step_sizes: Sequence[int], compile: bool = False):
        """
        Args:
            trained: Heads whose normalisation is folded into the convolutions
                (``bua.modeling.optimize.fold_norms``). Their networks are taken over, not copied.
            step_sizes: Numbers of regions that run through res5 at a time: the largest as long as there are so many,
                and then the smallest that is enough, filled up. On a CPU the last step is only filled up for compiled
                code.
            compile: Whether to compile the part of res5 that follows its second convolution.
        """
        # The constructor of AttributeRes5ROIHeads would build new networks.
        nn.Module.__init__(self)
        self.box_cfg = trained.box_cfg
        self.feature_dim = trained.feature_dim
        self.res5 = trained.res5
        self.box_predictor = trained.box_predictor
        self.attribute_predictor = trained.attribute_predictor

        self.first_block = self.res5[0]
        on_cpu = self.first_block.conv1.weight.device.type == "cpu"
        self.step_sizes = sorted(step_sizes)
        # Compiled code, and cuDNN's plans, are for one shape each.
        self.fills_steps = compile or not on_cpu
        self.mean_of_res5: Callable[[Tensor, Tensor], Tensor] = _MeanOfRes5(self.res5)
        if compile:
            self.mean_of_res5 = torch.compile(
                self.mean_of_res5, dynamic=False, options={"freezing": True} if on_cpu else None
            )
        # Statistics over the bins of a region, as in GN, are not those over the windows.
        by_window = not any(isinstance(module, nn.GroupNorm) for module in self.res5.modules())
        self.pools_windows = self.box_cfg.POOLER_TYPE == "ROIPool" and by_window and self.first_block.conv2.groups == 1
        if self.pools_windows:
            # The weights of conv2's nine taps as one linear layer with nine times the output channels.
            taps = self.first_block.conv2.weight.permute(2, 3, 0, 1).flatten(0, 2).contiguous()
            self.register_buffer("conv2_taps", taps, persistent=False)

    def features(self, feature_map: Tensor, boxes: list[Tensor], stride: int) -> Tensor:
        """Returns the features [sum of N, D] float32, >= 0, of the boxes [N, 4] of each image, in network pixels."""
        return self.features_of_maps([feature_map], [boxes], stride)

    def features_of_maps(self, feature_maps: list[Tensor], boxes: list[list[Tensor]], stride: int) -> Tensor:
        number = sum(len(image_boxes) for map_boxes in boxes for image_boxes in map_boxes)
        if number == 0:
            return feature_maps[0].new_zeros(0, self.feature_dim, dtype=torch.float32)
        begin_res5 = self._begin_with_windows if self.pools_windows else self._begin_with_bins
        steps = begin_res5(feature_maps, boxes, 1.0 / stride)
        return torch.cat([self.mean_of_res5(out, shortcut) for out, shortcut in steps])[:number]

    def _begin_with_windows(
        self, feature_maps: list[Tensor], boxes: list[list[Tensor]], scale: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields conv2's output and the shortcut for each step, [step, C, n, n], put together from the values of the
        windows.

        The output of a 3x3 convolution is a sum of nine products, each of a window with the weights of one tap. The
        products, too, are computed once per window, and only their sums once for each bin of each region.
        """
        windows, first_image = [], 0
        for feature_map, map_boxes in zip(feature_maps, boxes):
            of_map = roi_windows(map_boxes, self.box_cfg.POOLER_RESOLUTION, scale, *feature_map.shape[-2:])
            of_map[..., 0] += first_image
            first_image += len(map_boxes)
            windows.append(of_map)
        distinct, index = distinct_windows(torch.cat(windows))
        maxima = window_maxima(feature_maps, distinct)
        conv1, conv2, shortcut = self.first_block.conv1, self.first_block.conv2, self.first_block.shortcut
        reduced = nn.functional.relu_(_pointwise(maxima, conv1.weight, conv1.bias))
        # The last row is the padding around a region.
        products = nn.functional.linear(nn.functional.pad(reduced, (0, 0, 0, 1)), self.conv2_taps)
        products = products.view(-1, conv2.out_channels)
        shortcuts = _pointwise(maxima, shortcut.weight, shortcut.bias)
        for rows in self._steps(index):
            taps = _tap_rows(rows[:, :: conv1.stride[0], :: conv1.stride[1]], conv2, padding=len(reduced))
            out = nn.functional.embedding_bag(taps.flatten(0, 2), products, mode="sum").add_(conv2.bias)
            shortcut_rows = rows[:, :: shortcut.stride[0], :: shortcut.stride[1]]
            yield out.view(*taps.shape[:3], -1).permute(0, 3, 1, 2), shortcuts[shortcut_rows].permute(0, 3, 1, 2)

    def _begin_with_bins(
        self, feature_maps: list[Tensor], boxes: list[list[Tensor]], scale: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields conv2's output and the shortcut for each step, [step, C, n, n], computed for each region."""
        resolution, pooler = self.box_cfg.POOLER_RESOLUTION, self.box_cfg.POOLER_TYPE
        pooled = torch.cat(
            [
                # torchvision's operators have no bf16 form.
                pool_regions(
                    feature_map.float(), map_boxes, resolution, scale, pooler, self.box_cfg.POOLER_SAMPLING_RATIO
                )
                for feature_map, map_boxes in zip(feature_maps, boxes)
            ]
        )
        block = self.first_block
        for regions in self._steps(pooled):
            regions = regions.to(block.conv1.weight.dtype, memory_format=torch.channels_last)
            yield block.conv2(nn.functional.relu_(block.conv1(regions))), block.shortcut(regions)

    def _steps(self, values: Tensor) -> Iterator[Tensor]:
        """Yields parts of as many rows as ``step_sizes`` say. The last part is filled up with its last row."""
        for part in values.split(self.step_sizes[-1]):
            missing = 0
            if self.fills_steps:
                missing = next(size for size in self.step_sizes if size >= len(part)) - len(part)
            yield torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part


class _MeanOfRes5(nn.Module):
    """Continues res5 from the output of its second convolution and its shortcut to the mean, [R, D] float32."""

    def __init__(self, res5: nn.Sequential):
        super().__init__()
        self.res5 = res5

    def forward(self, out: Tensor, shortcut: Tensor) -> Tensor:
        first_block = self.res5[0]
        assert isinstance(first_block, Bottleneck | PreActivationBottleneck)
        x = first_block.after_conv2(out, shortcut)
        for module in self.res5[1:]:
            x = module(x)
        return x.mean(dim=(2, 3), dtype=torch.float32)


def _pointwise(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns rows [K, C] times a weight [D, C, 1, 1], [K, D].

    On a CPU oneDNN's convolution is up to twice as fast as the BLAS behind torch's matrix product. On a GPU a
    convolution would need a new plan of cuDNN for each K.
    """
    if rows.device.type != "cpu":
        return nn.functional.linear(rows, weight.flatten(1), bias)
    return nn.functional.conv2d(rows.T[None, :, :, None], weight, bias)[0, :, :, 0].T


def _tap_rows(rows: Tensor, conv: nn.Conv2d, padding: int) -> Tensor:
    """Returns which products a square convolution adds up for each output.

    Args:
        rows: [R, n, n] int64 row of each of its inputs.
        padding: Row for the inputs around these.

    Returns:
        [R, m, m, taps] int64: row times the number of taps, plus the tap.
    """
    assert isinstance(conv.padding, tuple)
    size, dilation, stride, width = conv.kernel_size[0], conv.dilation[0], conv.stride[0], conv.padding[0]
    extent = (size - 1) * dilation + 1
    padded = nn.functional.pad(rows, (width, width, width, width), value=padding)
    inputs = padded.unfold(1, extent, stride)[..., ::dilation].unfold(2, extent, stride)[..., ::dilation].flatten(-2)
    return inputs * size**2 + torch.arange(size**2, device=rows.device)
