"""The paper's networks: their sizes, a step of training, and the cures of what would spoil one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import CANNOT_IMPORT
from restoration.networks import SPECIFICATIONS, build, multiply_adds, teacher_of
from torch import nn

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator

pytest.importorskip("spandrel_extra_arches", exc_type=CANNOT_IMPORT)

from restoration.networks.paper import RCAN, LocalPool, NAFNet, Restormer, SwinIR

COUNTS = {  # of all parameters, constants of RCAN included, by scale; Table 1 has, in millions,
    "swinir-teacher": {2: 11_752_487, 3: 11_937_127, 4: 11_900_199},  # 11.9, as at x4
    "swinir-student": {2: 1_087_727, 3: 1_272_367, 4: 1_235_439},  # 1.2, as at x4
    "swinir-light": {2: 910_152, 3: 918_267, 4: 929_628},  # it is Table 8's
    "rcan-teacher": {2: 15_444_667, 3: 15_629_307, 4: 15_592_379},  # 15.6, as at x4
    "rcan-student": {2: 5_023_627, 3: 5_208_267, 4: 5_171_339},  # 5.0, as at x2
    "nafnet-teacher": {1: 17_111_907},  # 17.1
    "nafnet-student": {1: 2_683_059},  # 2.7
    "restormer-teacher": {1: 26_126_644},  # 26.1
    "restormer-student": {1: 3_813_230},  # 3.8
}
LARGE = ("swinir-student", "rcan-student", "restormer-student")
STUDENTS = [name for name in SPECIFICATIONS if name != teacher_of(name)]


def small_swinir(**changes):
    torch.manual_seed(0)
    sizes = {"window_size": 8, "img_size": 8, "embed_dim": 12, "depths": [2], "num_heads": [2]}
    return SwinIR(**{"scale": 2, **sizes, "mlp_ratio": 2, "upsampler": "pixelshuffle", **changes})


def small_rcan():
    torch.manual_seed(0)
    return RCAN(scale=2, n_resgroups=1, n_resblocks=1, n_feats=16, reduction=4)


def small_nafnet():
    """Not fresh: a fresh one's blocks are the identity."""
    torch.manual_seed(0)
    model = NAFNet(width=4, enc_blk_nums=[1, 1], middle_blk_num=1, dec_blk_nums=[1, 1])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def small_restormer():
    torch.manual_seed(0)
    return Restormer(dim=8, num_blocks=[1] * 4, num_refinement_blocks=1, heads=[1, 2, 4, 8])


def without_weights(name, scale):
    """A network on no device, which is made sooner, where spandrel's can be made so."""
    with torch.device("cpu" if name.startswith(("swinir", "rcan")) else "meta"):
        return build(name, scale)


@pytest.mark.parametrize("name", SPECIFICATIONS)
def test_parameters(name):
    for scale in SPECIFICATIONS[name].scales:
        model = without_weights(name, scale)
        assert sum(p.numel() for p in model.parameters()) == COUNTS[name][scale]
        assert (model.backbone, model.scale) == (name, scale)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in STUDENTS],
)
def test_one_step_of_distillation(name):
    """Student, teacher and history work together, and nothing is left behind by the step."""
    torch.manual_seed(0)
    scale = SPECIFICATIONS[name].scales[0]
    student, teacher = build(name, scale).train(), build(teacher_of(name), scale).eval()
    history = HistoryModel(student, interval=1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    negatives = NegativeGenerator(history, num_negatives=2)
    dckd = DCKDLoss(student, "compact", negatives=negatives).attach(optimizer)
    before = copy.deepcopy(student.state_dict())
    lq = torch.rand(1, 3, 16 // scale, 16 // scale)
    output = student(lq)
    with torch.no_grad():
        target = teacher(lq)
    loss = F.l1_loss(output, target) + dckd(output, target, lq)
    loss.backward()
    optimizer.step()
    assert output.shape == target.shape == (1, 3, 16, 16)
    assert loss.isfinite()
    for key, parameter in student.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), key
    moved = {k for k, v in student.named_parameters() if not torch.equal(v, before[k])}
    assert len(moved) > len(before) // 2
    for key, value in history.model.named_parameters():
        expected = 0.1 * before[key] + 0.9 * student.get_parameter(key)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


def test_multiply_adds_are_those_of_each_layer():
    """RCAN by its convolutions, SwinIR-light by its layers as its paper describes them."""
    height, width = 8, 16
    rcan = build("rcan-student", 4).to("meta")
    sizes = {"add_mean": 16, "tail.0.2": 4, "tail.1": 16}  # pixels to one LR pixel
    expected = 0
    for name, layer in rcan.named_modules():
        if isinstance(layer, nn.Conv2d):
            area = 1 if "conv_du" in name else height * width * sizes.get(name, 1)
            expected += layer.weight.numel() * area
    assert multiply_adds(rcan, height, width) == expected
    c, blocks, window = 60, 24, 8
    attention = blocks * 2 * window**2 * c
    linear = blocks * (4 * c * c + 2 * 2 * c * c)
    convolutions = 9 * (5 * c * c + 3 * c + c * 48)
    light = build("swinir-light", 4).to("meta")
    assert multiply_adds(light, height, width) == height * width * (
        attention + linear + convolutions
    )


class TestSwinIR:
    def test_mean_color_stays_exact_and_moves_with_the_module(self):
        model = small_swinir().eval()
        lq = torch.rand(1, 3, 8, 8)
        first = model(lq)
        with torch.autocast("cpu", torch.bfloat16):
            model(lq.bfloat16())
        assert torch.equal(model(lq), first)
        assert model.to("meta")(lq.to("meta")).shape == (1, 3, 16, 16)

    def test_blocks_are_left_out_in_training_only(self):
        model = small_swinir(depths=[6], drop_path_rate=0.9)
        lq = torch.rand(1, 3, 8, 8)
        assert len({model(lq).sum().item() for _ in range(4)}) > 1
        model.eval()
        assert len({model(lq).sum().item() for _ in range(4)}) == 1

    def test_images_of_any_size(self):
        assert small_swinir()(torch.rand(1, 3, 9, 13)).shape == (1, 3, 18, 26)


class TestRCAN:
    @pytest.mark.parametrize("leaf", [False, True])
    def test_input_is_left_alone(self, leaf):
        lq = torch.rand(1, 3, 8, 8, requires_grad=leaf)
        given = lq.detach().clone()
        small_rcan()(lq).sum().backward()
        assert torch.equal(lq, given)
        assert (lq.grad is not None) == leaf

    def test_mean_colors_are_constants(self):
        model = small_rcan()
        mean = torch.tensor([0.4488, 0.4371, 0.4040])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(2):
            model(torch.rand(1, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        for layer, sign in ((model.sub_mean, -1), (model.add_mean, 1)):
            assert not any(parameter.requires_grad for parameter in layer.parameters())
            torch.testing.assert_close(layer.bias, sign * 255 * mean)
            assert torch.equal(layer.weight[..., 0, 0], torch.eye(3))


class TestNAFNet:
    @pytest.mark.parametrize("shape", [(5, 7), (9, 4), (9, 10), (6, 6)])
    def test_pool_is_the_mean_of_the_window_around_each_pixel(self, shape):
        x = torch.rand(2, 3, *shape, dtype=torch.float64)
        seen = LocalPool(6).eval()(x).expand_as(x)
        for row in range(shape[0]):
            for column in range(shape[1]):
                window = x[..., inside(row, 6, shape[0]), inside(column, 6, shape[1])]
                expected = window.mean((-2, -1))
                torch.testing.assert_close(seen[..., row, column], expected, rtol=0, atol=1e-12)

    def test_pool_keeps_its_precision_over_large_images(self):
        x = 100 + torch.rand(1, 1, 400, 1300)
        exact = LocalPool(384).eval()(x.double())
        for image, tolerance in ((x, 1e-5), (x.bfloat16(), 1e-2)):
            seen = LocalPool(384).eval()(image)
            assert seen.dtype == image.dtype
            torch.testing.assert_close(seen.double(), exact, rtol=tolerance, atol=0)

    def test_pool_is_global_in_training_and_for_patches(self):
        x = torch.rand(1, 2, 9, 9)
        for pool in (LocalPool(6).train(), LocalPool(9).eval()):
            assert torch.equal(pool(x), F.adaptive_avg_pool2d(x, 1))

    def test_means_are_of_384_pixels_at_test_time(self):
        """Through five blocks one end of 1,536 pixels does not see the other."""
        model = small_nafnet()
        image = torch.rand(1, 3, 4, 1536)
        other = image.clone()
        other[..., :4] = 1 - other[..., :4]
        patch = image[..., :256]
        for training, far_end_sees in ((True, True), (False, False)):
            model.train(training)
            with torch.no_grad():
                change = (model(image) - model(other)).abs().amax((0, 1, 2))
            assert change[:4].min() > 0
            assert (change[-4:].max() > 1e-5) == far_end_sees  # sums run over all, and round
        with torch.no_grad():
            assert torch.equal(model(patch), model.train()(patch))

    def test_windows_halve_with_each_level(self):
        model = build("nafnet-student", 1)
        stages = [*model.encoders, model.middle_blks, *model.decoders]
        sizes = [{block.sca[0].size for block in stage} for stage in stages]
        assert sizes == [{384}, {192}, {96}, {48}, {24}, {48}, {96}, {192}, {384}]


def inside(place, size, length):
    """The window around a place, moved inside the image; an even one has more to the right."""
    size = min(size, length)
    start = min(max(place - (size - 1) // 2, 0), length - size)
    return slice(start, start + size)


class TestRestormer:
    @pytest.mark.parametrize("shape", [(16, 16), (13, 19), (5, 24)])
    def test_any_size_is_reflected_to_a_multiple_of_8(self, shape):
        model = small_restormer().eval()
        image = torch.rand(1, 3, *shape)
        height, width = shape
        rows = [reflected(i, height) for i in range(-(-height // 8) * 8)]
        columns = [reflected(i, width) for i in range(-(-width // 8) * 8)]
        with torch.no_grad():
            output = model(image)
            whole = super(Restormer, model).forward(image[:, :, rows][..., columns])
        assert torch.equal(output, whole[..., :height, :width])


def reflected(index, length):
    return index if index < length else 2 * (length - 1) - index


@pytest.mark.parametrize("make", [small_swinir, small_rcan, small_nafnet, small_restormer])
def test_cures_change_no_name_or_shape(make):
    """Official files fit, and spandrel reads ours."""
    model = make()
    plain = type(model).__mro__[1](**model.hyperparameters)
    assert type(plain).__module__.startswith("spandrel")
    shapes, expected = ({k: v.shape for k, v in m.state_dict().items()} for m in (model, plain))
    assert shapes == expected
