"""What the Triton kernels of every room share: places, products, a step of a linear recurrence, block sizes.

Names: p_ a pointer, o_ offsets, i_ an index, b_ a block; capital letters are the papers' matrices.
"""

import triton
import triton.language as tl

FUSED = {"enable_fp_fusion": True}  # a product and a sum are one operation, whatever Triton's default is


def block(width: int) -> int:
    """A power of two, and at least the 16 that a product of blocks needs."""
    return max(16, triton.next_power_of_2(width))


@triton.jit
def place(i, j, width):
    """Where [i, j] lies in rows of ``width`` numbers, of which there may be more than 2^31."""
    return tl.cast(i, tl.int64) * width + j


@triton.jit
def round_tf32(b_x):
    """To the nearest number of tf32's 10 digits: a GPU's product drops the others, so that all errors go one way."""
    b_r = ((b_x.to(tl.int32, bitcast=True) + 0x1000) & ~0x1FFF).to(tl.float32, bitcast=True)
    return tl.where(b_x == b_x, b_r, b_x)  # a NaN of ones alone would carry over to a zero


@triton.jit
def dot(b_x, b_y, PRECISION: tl.constexpr, b_sum=None):
    """x y, added to a sum where there is one: in the accumulator, which takes no registers and no addition more."""
    if PRECISION == "bf16":
        b_z = tl.dot(b_x.to(tl.bfloat16), b_y.to(tl.bfloat16), b_sum)
    elif PRECISION == "rounded":  # the same where products in bfloat16 do not work: in the interpreter
        b_x, b_y = b_x.to(tl.bfloat16).to(tl.float32), b_y.to(tl.bfloat16).to(tl.float32)
        b_z = tl.dot(b_x, b_y, b_sum, input_precision="ieee")
    elif PRECISION == "tf32":
        b_z = tl.dot(round_tf32(b_x), round_tf32(b_y), b_sum, input_precision="tf32")
    else:
        b_z = tl.dot(b_x, b_y, b_sum, input_precision=PRECISION)
    return b_z


@triton.jit
def compose(b_a, b_x, b_a_next, b_x_next):
    """Joins two stretches of h_t = a_t h_{t-1} + x_t."""
    return b_a * b_a_next, b_x * b_a_next + b_x_next
