"""A few numbers at once: fixed-width vectors in registers, and a counter that threads share.

LLVM splits a vector of any width into what the processor has, so that nothing here names an
instruction set. The vectorizer of loops would do for wide rows only: a loop over 32 numbers or
fewer is unrolled before it gets there, into as many scalars.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_any: Any = intrinsic
_literal: Any = intrinsic(prefer_literal=True)

_CONTRACT = ("contract",)
"""A product and a sum may become one operation with one rounding."""


def _vector(context: Any, element: Any, width: Any) -> Any:
    return ir.VectorType(context.get_value_type(element), width.literal_value)


def _at(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, vector: Any) -> Any:
    """A pointer to as many elements of ``array``, from ``offset`` on, as ``vector`` holds."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(cgutils.gep_inbounds(builder, data, offset), vector.as_pointer())


def _itemsize(element: Any) -> int:
    return element.bitwidth // 8


@_literal
def lanes(typingctx: Any, like: Any, width: Any) -> Any:
    """An accumulator of ``width`` numbers (a literal) of the dtype of the array ``like``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _vector(context, like.dtype, width)
        pointer = cgutils.alloca_once(builder, vector)
        return builder.bitcast(pointer, context.get_value_type(like.dtype).as_pointer())

    return types.CPointer(like.dtype)(like, width), codegen


@_literal
def fill(typingctx: Any, accumulator: Any, width: Any, value: Any) -> Any:
    """Every lane becomes ``value``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _vector(context, accumulator.dtype, width)
        pointer = builder.bitcast(args[0], vector.as_pointer())
        builder.store(_splat(builder, args[2], vector), pointer)
        return context.get_dummy_value()

    return types.void(accumulator, width, accumulator.dtype), codegen


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = ir.Constant(ir.IntType(32), 0)
    head = builder.insert_element(undefined, value, first)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(head, undefined, zeros)


@_literal
def load(typingctx: Any, accumulator: Any, width: Any, array: Any, offset: Any) -> Any:
    """The lanes become ``array[offset : offset + width]``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _vector(context, accumulator.dtype, width)
        source = _at(context, builder, signature.args[2], args[2], args[3], vector)
        found = builder.load(source, align=_itemsize(accumulator.dtype))
        builder.store(found, builder.bitcast(args[0], vector.as_pointer()))
        return context.get_dummy_value()

    return types.void(accumulator, width, array, types.int64), codegen


@_literal
def store(typingctx: Any, accumulator: Any, width: Any, array: Any, offset: Any) -> Any:
    """``array[offset : offset + width]`` becomes the lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _vector(context, accumulator.dtype, width)
        found = builder.load(builder.bitcast(args[0], vector.as_pointer()))
        place = _at(context, builder, signature.args[2], args[2], args[3], vector)
        builder.store(found, place, align=_itemsize(accumulator.dtype))
        return context.get_dummy_value()

    return types.void(accumulator, width, array, types.int64), codegen


@_literal
def add_product(
    typingctx: Any, accumulator: Any, width: Any, factor: Any, array: Any, offset: Any
) -> Any:
    """The lanes grow by ``factor * array[offset : offset + width]``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _vector(context, accumulator.dtype, width)
        source = _at(context, builder, signature.args[3], args[3], args[4], vector)
        found = builder.load(source, align=_itemsize(accumulator.dtype))
        product = builder.fmul(_splat(builder, args[2], vector), found, flags=_CONTRACT)
        pointer = builder.bitcast(args[0], vector.as_pointer())
        total = builder.fadd(builder.load(pointer), product, flags=_CONTRACT)
        builder.store(total, pointer)
        return context.get_dummy_value()

    signature = types.void(accumulator, width, accumulator.dtype, array, types.int64)
    return signature, codegen


@_any
def fetch_add(typingctx: Any, counters: Any, index: Any) -> Any:
    """``counters[index]``, which grows by 1 in the same moment, whoever else counts."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = cgutils.gep_inbounds(builder, data, args[1])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(counters, types.int64), codegen


@_any
def address_of(typingctx: Any, address: Any) -> Any:
    """The integer ``address`` as a pointer, for ``numba.carray``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen
