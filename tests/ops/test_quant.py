"""Weights in 8 and 4 bits: what is lost, and that nothing more is lost the second time."""

import pytest
import torch

from etude.ops.quant import E4M3, TOP, pack_fp8, pack_int4, unpack_fp8, unpack_int4

SHAPES = [(128, 128), (576, 130), (1, 1), (300, 257)]


def weights(rows, columns):
    """Rows of very different size, as in a trained matrix."""
    return torch.randn(rows, columns) * torch.randn(rows, 1).exp()


def same(a, b):
    """The same bits, whatever the dtype."""
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_is_within_half_a_step_of_the_weight(shape):
    w = weights(*shape)
    values, scale = pack_fp8(w)
    assert values.shape == w.shape
    assert scale.shape == tuple(-(-n // 128) for n in shape)
    back = unpack_fp8(values, scale)
    each = scale.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    # 3 bits after the point: half a step is 1/16 of the power of two below, at least 2^-10
    power = torch.exp2(torch.floor(torch.log2((w / each).abs().clamp_min(2.0**-6))))
    assert torch.all((back - w).abs() <= each * power / 16 * 1.0001)
    assert values.float().abs().max() == TOP


@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_packs_what_it_unpacked_to_the_same_bits(shape):
    packed = pack_fp8(weights(*shape))
    again = pack_fp8(unpack_fp8(*packed))
    assert same(packed[0], again[0]) and same(packed[1], again[1])


def test_scales_of_any_float32_come_back_bit_for_bit():
    """Released files divide by 448 in float32: their scales have all 24 bits."""
    w = weights(512, 384)
    top = w.unflatten(0, (4, 128)).unflatten(2, (3, 128)).abs().amax((1, 3))
    scale = top / 448
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    values = (w / spread).to(E4M3)
    again = pack_fp8(unpack_fp8(values, scale))
    assert same(again[0], values) and same(again[1], scale)


def test_a_block_takes_its_scale_from_its_own_values_alone():
    w = torch.zeros(200, 200)
    w[0, 0], w[199, 199] = 448.0, 4.48e-3
    _, scale = pack_fp8(w)
    assert scale[0, 0] == 1
    assert scale[1, 1] == pytest.approx(1e-5, rel=1e-5)
    assert scale[0, 1] == scale[1, 0] == 1  # a block of zeros
    assert torch.equal(unpack_fp8(*pack_fp8(torch.zeros(3, 3))), torch.zeros(3, 3))


def test_the_scale_multiplies_and_blocks_stand_in_order():
    values = torch.ones(3, 5).to(E4M3)
    scale = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert unpack_fp8(values, scale, block=(2, 2)).tolist() == [
        [1, 1, 2, 2, 3],
        [1, 1, 2, 2, 3],
        [4, 4, 5, 5, 6],
    ]


def test_fp8_unpacks_to_the_dtype_asked_for():
    assert unpack_fp8(*pack_fp8(torch.randn(4, 4)), dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 32), (7, 96), (64, 1024)])
def test_int4_is_within_half_a_step_of_the_weight(shape):
    w = weights(*shape)
    words, scale = pack_int4(w)
    assert words.shape == (shape[0], shape[1] // 8) and words.dtype == torch.int32
    assert scale.shape == (shape[0], shape[1] // 32) and scale.dtype == torch.bfloat16
    step = scale.float().repeat_interleave(32, 1)
    # the top value is up to 2^-8 of itself beyond 7 steps, as the scale is rounded to bfloat16
    assert torch.all((unpack_int4(words, scale) - w).abs() <= 0.5 * step * 1.0001)


@pytest.mark.parametrize("group", [32, 8, 12])
def test_int4_packs_what_it_unpacked_to_the_same_bits(group):
    packed = pack_int4(weights(9, 96), group=group)
    again = pack_int4(unpack_int4(*packed, group=group), group=group)
    assert same(packed[0], again[0]) and same(packed[1], again[1])


def test_int4_words_of_files_that_use_minus_eight_come_back_bit_for_bit():
    words = torch.randint(-(2**31), 2**31, (40, 12), dtype=torch.int64).to(torch.int32)
    words[:, ::4] = words[:, ::4] & ~15  # the first of each group is -8
    scale = torch.rand(40, 3).add(0.1).bfloat16()
    again = pack_int4(unpack_int4(words, scale))
    assert same(again[0], words) and same(again[1], scale)


def test_the_first_of_eight_values_stands_in_the_lowest_bits():
    """The words that compressed-tensors makes of these values."""
    values = [*range(-8, 8), *([7, -8] * 8)]
    words = torch.tensor([[0x76543210, 0xFEDCBA98 - 2**32, 0x0F0F0F0F, 0x0F0F0F0F]]).int()
    scale = torch.tensor([[0.5]]).bfloat16()
    assert unpack_int4(words, scale).flatten().tolist() == [v / 2 for v in values]
    assert same(pack_int4(torch.tensor([values]) / 2.0)[0], words)


def test_columns_that_fill_no_group_are_refused():
    with pytest.raises(ValueError, match="40 columns are no multiple"):
        pack_int4(torch.randn(2, 40))
