"""Rules by which a weight fits another network, one function each; they keep what is computed.

Weights of convolutions are (F, C, *k), those of transposed ones (C, F, *k), of norms (F,).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FAINT = 0.1  # of the image behind `make_stem`


def repeat_channels(kernel: Tensor, count: int) -> Tensor:
    """Mean over the old input channels, scaled: equal channels give the response that they gave."""
    shape = (kernel.shape[0], count, *kernel.shape[2:])
    return (kernel.sum(1, keepdim=True) / count).expand(shape).clone()


def select_channels(kernel: Tensor, order: Sequence[int | None]) -> Tensor:
    """Input channel j of the result is channel `order[j]`, or zero: the response is kept where
    what is left out, or new, is zero, the mean of a normalised image."""
    chosen = [torch.zeros_like(kernel[:, 0]) if i is None else kernel[:, i] for i in order]
    return torch.stack(chosen, 1)


def match_channels(old: Sequence[str], new: Sequence[str]) -> list[int | None] | None:
    """For `select_channels`: where each new channel stands among the old ones, by its name.

    None where the names tell nothing: they are equal or not unique, none is known, or as many
    channels are not the same ones.
    """
    names = [[name.strip().lower() for name in each] for each in (old, new)]
    before, now = names
    unique = all(len(set(each)) == len(each) for each in names)
    same_count_other_names = len(before) == len(now) and set(before) != set(now)
    if before == now or not unique or same_count_other_names or not set(before) & set(now):
        return None
    return [before.index(name) if name in before else None for name in now]


def change_dimension(kernel: Tensor, dimension: int, transposed: bool = False) -> Tensor:
    """2D to 3D: a kernel of length 1 along the first axis, which sees every slice alone.

    3D to 2D: the sum along the first axis (the mean of a transposed convolution), which gives
    the response on a stack of equal slices.
    """
    if kernel.ndim - 2 < dimension:
        return kernel.unsqueeze(2)
    if kernel.ndim - 2 > dimension:
        return kernel.mean(2) if transposed else kernel.sum(2)
    return kernel


def resize_kernel(kernel: Tensor, size: Sequence[int]) -> Tensor | None:
    """A kernel of other odd lengths.

    Longer: zeros around it, exactly the same response. Shorter: outer taps are added to the
    outermost that stays, the same response on images that are constant along that axis.
    None where an even length would shift the image.
    """
    for axis, length in enumerate(size, 2):
        old = kernel.shape[axis]
        if (old - length) % 2:
            return None
        if (cut := (old - length) // 2) > 0:
            outer = [kernel.narrow(axis, at, cut).sum(axis) for at in (0, old - cut)]
            kernel = kernel.narrow(axis, cut, length).clone()
            kernel.select(axis, 0).add_(outer[0])
            kernel.select(axis, -1).add_(outer[1])
        elif cut < 0:
            padded = kernel.new_zeros((*kernel.shape[:axis], length, *kernel.shape[axis + 1 :]))
            padded.narrow(axis, -cut, old).copy_(kernel)
            kernel = padded
    return kernel


def resize_transposed(kernel: Tensor, size: Sequence[int]) -> Tensor | None:
    """A transposed convolution, which is as long as its stride, for other strides.

    Longer: taps are repeated, each voxel of the coarser map is as before. Shorter: their mean.
    None where one length is no multiple of the other.
    """
    for axis, length in enumerate(size, 2):
        old = kernel.shape[axis]
        if length % old == 0:
            kernel = kernel.repeat_interleave(length // old, axis)
        elif old % length == 0:
            kernel = kernel.unflatten(axis, (length, old // length)).mean(axis + 1)
        else:
            return None
    return kernel


def set_width(
    source: Tensor, target: Tensor, transposed: bool = False, halves: bool = False
) -> tuple[Tensor, int]:
    """The source among the first channels of the target.

    A wider target computes in its first F channels what the source computes: their weights for
    further inputs are zero, the further outputs stay as they are. A narrower one loses the rest.

    Args:
        source: weight, norm or bias of F outputs (and C inputs).
        target: what the network has, with as many axes and the same kernel.
        transposed: the inputs come first.
        halves: the inputs are two maps of C / 2 channels each, one behind the other.

    Returns:
        The weight, and how many of its numbers the source decides.
    """
    fitted = target.clone()
    outputs = min(source.shape[int(transposed)], target.shape[int(transposed)])
    if source.ndim == 1:
        fitted[:outputs] = source[:outputs]
        return fitted, outputs
    into, given = (each.transpose(0, 1) if transposed else each for each in (fitted, source))
    into[:outputs] = 0
    maps = 1 + halves
    old, new = given.shape[1] // maps, into.shape[1] // maps
    kept = min(old, new)
    for number in range(maps):
        part = given[:outputs, number * old : number * old + kept]
        into[:outputs, number * new : number * new + kept] = part
    return fitted, into[:outputs].numel()


def split_signs(kernel: Tensor, target: Tensor) -> Tensor:
    """A kernel (F, C, *k) on images, for what `make_stem` makes of them; the rest stays.

    x = (lrelu(x) - lrelu(-x)) / (1 + slope), and the norm that follows takes off the factor.
    """
    fitted, channels = target.clone(), kernel.shape[1]
    fitted[:, :channels], fitted[:, channels : 2 * channels] = kernel, -kernel
    return fitted


def make_stem(weight: Tensor) -> dict[str, Tensor]:
    """A stem that passes on the C channels of an image and their negatives, faintly.

    A residual block adds its input to its output, a plain stage does not: the input is made faint,
    which the norm behind the block's first convolution takes off. Further features begin at zero.

    Args:
        weight: of the stem's convolution (F, C, *k), F at least 2 C.

    Returns:
        Its parameters by the end of their names.
    """
    features, channels = weight.shape[:2]
    passing, scale = weight.clone(), weight.new_zeros(features)
    passing[: 2 * channels] = 0
    middle = tuple(length // 2 for length in weight.shape[2:])
    for channel in range(channels):
        passing[channel, channel][middle] = 1.0
        passing[channels + channel, channel][middle] = -1.0
    scale[: 2 * channels] = FAINT
    zeros = weight.new_zeros(features)
    names = ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    return dict(zip(names, (passing, zeros, scale, zeros.clone()), strict=True))
