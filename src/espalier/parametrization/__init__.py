"""Masks, codebooks and grids on the user's own module, by ``torch.nn.utils.parametrize``.

The model is the state. A pruned weight is ``where(mask, latent, 0)``; a shared weight is
``codebook[codes]``, and then the parameter that the optimizer sees *is* the codebook. So zeros stay
zero under momentum and weight decay, the gradient of a centroid is the sum of the gradients of its
weights (Han et al. 2016, eq. 3) because autograd says so, and a ``state_dict`` holds everything.

===================================  =====================================================
state of a weight                    what its ``state_dict`` holds
===================================  =====================================================
pruned (:class:`Mask`)               ``original`` (dense), ``0.mask``
shared (:class:`SharedWeight`)       ``original`` (the codebook), ``0.codes``
shared, codes refreshed              ``original`` (dense), ``0.codes``, ``0.codebook``
(:class:`LatentSharedWeight`)
on a grid                            ``original`` (dense), ``0.method``, ``0.scales``,
(:class:`QuantizedWeight`)           ``0.zeros``, and ``0.mask`` if pruned
on a grid, its step in training      ``original`` (dense), ``0.log_step``,
(:class:`RateAwareWeight`)           ``0.mask`` if pruned, ``0.unit`` if its symbols are fixed
===================================  =====================================================
"""

from espalier.parametrization.held import (
    Grid,
    Held,
    current,
    mask_of,
    parameter_rank,
    release,
    set_codes,
    set_grid,
    set_mask,
)
from espalier.parametrization.masks import PRUNED, Mask
from espalier.parametrization.models import attach, finalize
from espalier.parametrization.quantized_weight import QuantizedWeight
from espalier.parametrization.rate_aware_weight import RateAwareWeight
from espalier.parametrization.shared_weight import LatentSharedWeight, SharedWeight, codes_dtype

__all__ = [
    "PRUNED",
    "Grid",
    "Held",
    "LatentSharedWeight",
    "Mask",
    "QuantizedWeight",
    "RateAwareWeight",
    "SharedWeight",
    "attach",
    "codes_dtype",
    "current",
    "finalize",
    "mask_of",
    "parameter_rank",
    "release",
    "set_codes",
    "set_grid",
    "set_mask",
]
