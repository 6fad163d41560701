"""Kernel, stride and padding of the one convolution that stands for a convolution and its run."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.structure.operations import Window


def reach(windows: Sequence[Window]) -> Window:
    """What one output of windows that follow each other sees of the input of the first.

    Along each axis: a window with span s = d (k - 1) + 1 behind a stride S widens the reach by
    (s - 1) S and moves its start by p S to the left; strides multiply. Dilation 1.

    Examples
    --------
    >>> conv = Window((11,), (4,), (0,), (1,))
    >>> reach([conv, Window((3,), (2,), (0,), (1,))])
    Window(kernel=(19,), stride=(8,), padding=(0,), dilation=(1,))
    """
    axes = len(windows[0].kernel)
    kernel, stride, padding = [1] * axes, [1] * axes, [0] * axes
    for window in windows:
        for i in range(axes):
            kernel[i] += window.dilation[i] * (window.kernel[i] - 1) * stride[i]
            padding[i] += window.padding[i] * stride[i]
            stride[i] *= window.stride[i]
    return Window(tuple(kernel), tuple(stride), tuple(padding), (1,) * axes)


def merged_window(
    convolution: Window, run: Sequence[Window], size: Sequence[int], outputs: Sequence[int]
) -> Window | None:
    """The window of a convolution with the combined stride that keeps the output's shape.

    The kernel is that of ``convolution`` (Li et al. 2018, section 3.1), or, where no padding gives
    the shape with that, the smallest above it that one does; of the paddings that do, the one whose
    windows lie closest to the centre of what is replaced. None where a stride of 1 and an even
    dilation leave outputs one too many or too few, whatever the kernel.

    Parameters
    ----------
    convolution : Window
    run : sequence of Window
        Of the poolings behind it, in order.
    size, outputs : sequence of int
        Of the input, and of the output of the last of ``run``, along each axis.

    Examples
    --------
    AlexNet's first convolution with its pooling, and GoogLeNet's:

    >>> pool = Window((3, 3), (2, 2), (0, 0), (1, 1))
    >>> str(merged_window(Window((11, 11), (4, 4), (0, 0), (1, 1)), [pool], (227, 227), (27, 27)))
    '12x12/8x8+0x0'
    >>> str(merged_window(Window((7, 7), (2, 2), (3, 3), (1, 1)), [pool], (224, 224), (56, 56)))
    '7x7/4x4+2x2'
    """
    whole = reach([convolution, *run])
    kernel, padding = [], []
    for i, n in enumerate(size):
        found = _axis(
            n,
            outputs[i],
            convolution.kernel[i],
            convolution.dilation[i],
            whole.stride[i],
            (whole.kernel[i], whole.padding[i]),
        )
        if found is None:
            return None
        kernel.append(found[0])
        padding.append(found[1])
    return Window(tuple(kernel), whole.stride, tuple(padding), convolution.dilation)


def _axis(
    size: int, outputs: int, kernel: int, dilation: int, stride: int, whole: tuple[int, int]
) -> tuple[int, int] | None:
    """(kernel, padding) with ``floor((size + 2 padding - span) / stride) + 1 == outputs``."""
    first = kernel
    # A window that is larger by the stride can be shifted by as much; beyond is nothing new.
    while kernel <= first + whole[0] + stride:
        span = dilation * (kernel - 1) + 1
        # stride (outputs - 1) <= size + 2 padding - span < stride outputs
        least = max(0, -(-(stride * (outputs - 1) - size + span) // 2))
        most = (stride * outputs - 1 - size + span) // 2
        if least <= most:
            centred = whole[1] - (whole[0] - span) / 2
            return kernel, min(range(least, most + 1), key=lambda p: abs(p - centred))
        kernel += 1
    return None
