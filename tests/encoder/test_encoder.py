"""The encoder against taming-transformers' own, and the behaviour users rely on."""

import copy
import statistics

import oracle
import pytest
import torch
from numerics import relative
from torch import nn

from dckd_losses import DCRLoss, DMMLoss, VQGANEncoder
from dckd_losses.encoder import as_encoder
from dckd_losses.network import build

F16 = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attn_resolutions": [16]}
COMPACT = {"ch": 32, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 1, "attn_resolutions": [16]}
MORE_ATTENTION = {
    "ch": 32, "ch_mult": (1, 2, 2, 3, 3), "num_res_blocks": 2, "attn_resolutions": [32, 16]
}  # fmt: skip


class Taming(nn.Module):
    """taming's encoder, quant_conv and codebook with random weights."""

    def __init__(self, z_channels, codes, **arguments):
        model = pytest.importorskip("taming.modules.diffusionmodules.model")
        super().__init__()
        torch.manual_seed(0)
        self.encoder = model.Encoder(
            **arguments, out_ch=3, in_channels=3, resolution=256, z_channels=z_channels,
            double_z=False,
        )  # fmt: skip
        self.quant_conv = nn.Conv2d(z_channels, z_channels, 1)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, z_channels)
        for parameter in self.parameters():  # norms and biases at their start would hide mistakes
            parameter.data += 0.02 * torch.randn_like(parameter)

    def levels_and_logits(self, x):
        """By hooks on taming's own forward; logits by distances, not by the shortcut."""
        taps = {}
        for i, stage in enumerate(self.encoder.down):
            stage.block[0].register_forward_hook(lambda m, a, out, i=i: taps.update({i: out}))
        z = self.quant_conv(self.encoder(x))
        codes = self.quantize.embedding.weight
        distances = (z[:, None] - codes[None, :, :, None, None]).square().sum(2)
        return [taps[i] for i in range(5)], -distances + z.square().sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("arguments", "z_channels", "codes", "size"),
    [
        pytest.param(F16, 256, 1024, (50, 67), marks=pytest.mark.slow),
        (COMPACT, 64, 256, (50, 67)),
        (COMPACT, 64, 256, (32, 32)),
        (MORE_ATTENTION, 24, 40, (64, 33)),
    ],
)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_taming(arguments, z_channels, codes, size, dtype, bound):
    taming = Taming(z_channels, codes, **arguments).to(dtype)
    encoder = VQGANEncoder(build(copy.deepcopy(taming.state_dict())))
    x = torch.rand(2, 3, *size, dtype=dtype)
    with torch.no_grad():
        levels, logits = taming.levels_and_logits(2 * x - 1)
        seen = encoder(x)
    assert len(seen.levels) == 5
    for mine, theirs in zip(seen.levels, levels, strict=True):
        assert mine.dtype == dtype
        assert relative(mine, theirs) < bound
    assert relative(seen.code_logits, logits) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_taming_at_the_smallest_size(dtype, bound):
    """Norms over two numbers at the last level's one pixel are ill-conditioned for some images."""
    taming = Taming(64, 256, **COMPACT).to(dtype)
    encoder = VQGANEncoder(build(copy.deepcopy(taming.state_dict())))
    x = torch.rand(15, 3, 16, 16, dtype=dtype)
    with torch.no_grad():
        levels, logits = taming.levels_and_logits(2 * x - 1)
        seen = encoder(x)
    for mine, theirs in zip((*seen.levels, seen.code_logits), (*levels, logits), strict=True):
        errors = [relative(*pair) for pair in zip(mine, theirs, strict=True)]
        assert statistics.median(errors) < bound


def test_softmax_of_the_logits_is_the_code_distribution(encoder, images):
    encoder = encoder.double()
    x = images(1, 3, 32, 48, dtype=torch.float64)
    network = encoder.network
    with torch.no_grad():
        *_, last = network.levels(2 * x - 1)
        z = network.latents(last)
        seen = encoder(x).code_logits.softmax(1)
    codes = network.quantize.embedding.weight.tolist()
    for row in range(2):
        for column in range(3):
            expected = oracle.code_distribution(z[0, :, row, column].tolist(), codes)
            assert seen[0, :, row, column].tolist() == pytest.approx(expected, rel=1e-10)


def test_input_range(encoder, tensors, images):
    x = images(1, 3, 32, 32)
    raw = VQGANEncoder(build(tensors), input_range=(0, 1))
    torch.testing.assert_close(raw(2 * x - 1).levels[0], encoder(x).levels[0])
    assert not torch.allclose(raw(x).levels[0], encoder(x).levels[0])


def test_only_the_images_that_are_to_have_logits_pass_the_whole_network(encoder, images):
    x, passed = images(3, 3, 32, 32), []
    encoder.network.encoder.mid.register_forward_hook(lambda m, args, out: passed.append(len(out)))
    everything, some, none = encoder(x), encoder(x, num_with_codes=2), encoder(x, num_with_codes=0)
    assert passed == [3, 2]
    assert [len(e.levels[0]) for e in (everything, some, none)] == [3, 3, 3]
    assert none.code_logits is None
    torch.testing.assert_close(some.code_logits, everything.code_logits[:2])


class Parent(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder


def test_invisible_to_a_parent(encoder):
    parent = Parent(encoder)
    assert not parent.state_dict()
    assert not list(parent.parameters())
    assert not list(parent.buffers())
    assert len(list(parent.modules())) == 2


def test_stays_in_eval_mode(encoder):
    Parent(encoder).train()
    encoder.train()
    assert not encoder.training
    assert not any(module.training for module in encoder.network.modules())


def test_follows_a_parent_to_devices_and_to_float64_but_not_below_float32(encoder, images):
    parent, x = Parent(encoder), images(1, 3, 32, 32)
    before = encoder(x).code_logits

    def weight():
        return encoder.network.quant_conv.weight

    parent.half().bfloat16().to(torch.float16)
    assert weight().dtype == torch.float32
    assert torch.equal(encoder(x).code_logits, before), "no digit is lost"
    parent.double()
    assert weight().dtype == torch.float64
    parent.float().to("meta", torch.half)
    assert (weight().device.type, weight().dtype) == ("meta", torch.float32)


def test_copies_and_pickles(encoder, images, clone):
    x, other = images(1, 3, 32, 32), clone(encoder)
    assert torch.equal(other(x).code_logits, encoder(x).code_logits)
    assert other.network is not encoder.network
    assert not other.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_range": (1, 0)}, r"low < high, got \(1, 0\)"),
        ({"input_range": 1}, "two finite numbers .* got 1"),
        ({"input_range": ("0", "1")}, "two finite numbers"),
        ({"input_range": (0, float("nan"))}, "two finite numbers"),
        ({"precision": "float8"}, "one of .*got 'float8'"),
        (
            {"impl": "plain", "mode": "twopass"},
            "got mode='twopass' and chunk=None with impl='plain'",
        ),
        ({"impl": "plain", "chunk": 1}, "got mode='stream' and chunk=1 with impl='plain'"),
    ],
)
def test_refuses_arguments(tensors, arguments, message):
    with pytest.raises(ValueError, match=message):
        VQGANEncoder(build(tensors), **arguments)


@pytest.mark.parametrize("order", [("auto", "plain"), ("plain", "auto")])
def test_encoders_of_one_network_are_each_their_own(tensors, images, order):
    """Whichever is made first: its way, precision and dtype, and the network as it was."""
    network = build(tensors)
    by_impl = {impl: VQGANEncoder(network, impl=impl) for impl in order}
    half = VQGANEncoder(network, precision="bfloat16")
    exact = VQGANEncoder(half.network)  # rounded weights, but float32's convolutions
    assert (half.network.encoder.dtype, exact.network.encoder.dtype) == (
        torch.bfloat16,
        torch.float32,
    )
    wide = VQGANEncoder(network, impl="plain").double()
    assert wide.network.encoder.dtype == torch.float64
    x = images(1, 3, 16, 16).requires_grad_()
    for encoder in by_impl.values():
        assert encoder.network.encoder.dtype == torch.float32
    mine = by_impl["plain"].network.quant_conv.weight
    assert mine.data_ptr() == network.quant_conv.weight.data_ptr()
    torch.autograd.grad(by_impl["plain"](x).levels[1].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(by_impl["auto"](x).levels[1].sum(), x, create_graph=True)
    assert network.quant_conv.weight.requires_grad and network.training
    assert network.quant_conv.weight.dtype == torch.float32


@pytest.mark.parametrize("fullgraph", [False, True])
def test_fused_refuses_torch_compile(make_encoder, images, fullgraph):
    """Where "auto" turns plain: a graph break would leave the fused path without a word."""
    torch._dynamo.reset()
    dmm = DMMLoss(make_encoder(impl="fused"))
    compiled = torch.compile(dmm, backend="eager", fullgraph=fullgraph)
    expected = torch._dynamo.exc.Unsupported if fullgraph else RuntimeError
    with pytest.raises(expected, match=None if fullgraph else "'fused' does not compile.*auto"):
        compiled(*images(2, 1, 3, 16, 16))


def test_modules_may_have_hooks(encoder, images):
    """As profilers and torch's communication counter have: their outputs are views."""
    calls = []
    for module in encoder.network.modules():
        module.register_full_backward_hook(lambda *_: calls.append(1))
    student, teacher = images(2, 1, 3, 16, 16)
    DMMLoss(encoder)(student.requires_grad_(), teacher).backward()
    assert calls and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(3, 32, 32), r"\(B, 3, H, W\), got \(3, 32, 32\)"),
        (torch.rand(1, 1, 32, 32), r"got \(1, 1, 32, 32\)"),
        (torch.rand(0, 3, 32, 32), r"got \(0, 3, 32, 32\)"),
        (torch.rand(1, 3, 15, 40), "at least 16x16 pixels, got 15x40"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "floating point.*uint8"),
        ([[1.0]], "must be a tensor, got list"),
        (torch.rand(1, 3, 32, 32, device="meta"), r"meta.*cpu.*\.to\(device\)"),
    ],
)
def test_refuses_images(encoder, bad, message):
    with pytest.raises(ValueError, match=message):
        encoder(bad)


def test_refuses_what_is_no_encoder():
    with pytest.raises(ValueError, match="a name, a path or a module, got int"):
        as_encoder(3)


def test_losses_share_an_encoder_that_they_are_given(encoder):
    assert DCRLoss(encoder).encoder is DMMLoss(encoder).encoder is encoder


def test_from_pretrained_passes_its_settings_on(weights_file):
    plain = VQGANEncoder.from_pretrained(weights_file)
    assert (plain.input_range, plain.precision) == ((-1.0, 1.0), "float32")
    assert (plain.impl, plain.mode, plain.chunk) == ("auto", "stream", None)
    chosen = {"precision": "bfloat16", "impl": "fused", "mode": "twopass", "chunk": 3}
    other = VQGANEncoder.from_pretrained(weights_file, input_range=(0, 1), **chosen)
    assert other.input_range == (0.0, 1.0)
    assert {name: getattr(other, name) for name in chosen} == chosen


def test_a_path_or_a_network_is_an_encoder(tensors, weights_file):
    network = build(tensors)
    for given in (weights_file, str(weights_file), network):
        assert isinstance(DMMLoss(given).encoder, VQGANEncoder)
    assert network.quant_conv.weight.requires_grad, "the caller's network is left alone"


def test_code_distances_are_float32_at_bfloat16_precision(tensors, images):
    encoder = VQGANEncoder(build(tensors), precision="bfloat16", impl="plain")
    x, seen = images(1, 3, 32, 32), []
    encoder.network.quantize.register_forward_hook(lambda m, args, out: seen.extend((*args, out)))
    assert torch.equal(encoder(x).code_logits, seen[1])
    z, codes = seen[0].double(), tensors["quantize.embedding.weight"].double()
    exact = 2 * torch.einsum("bdhw,kd->bkhw", z, codes) - codes.square().sum(1)[:, None, None]
    assert seen[1].dtype == torch.float32
    torch.testing.assert_close(seen[1].double(), exact, rtol=1e-5, atol=1e-6)
