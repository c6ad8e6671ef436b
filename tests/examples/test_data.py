"""Data sets as users have them on disk, with their usual damages."""

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from restoration.data.crops import RandomCrops
from restoration.data.datasets import Pair, load_pairs, pairs_from_images
from restoration.data.images import BadImageError, list_images, photographs, read_image
from restoration.data.synthetic import matlab_bicubic
from torch.utils.data import DataLoader


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(image).save(path)
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class TestReadImage:
    def test_rgb_is_exact(self, tmp_path):
        np.testing.assert_array_equal(
            read_image(write(tmp_path / "a.png", noise(5, 7))), noise(5, 7)
        )

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
    def test_other_modes_become_rgb(self, tmp_path, mode):
        image = Pillow.fromarray(np.full((4, 6, 3), 255, np.uint8)).convert(mode)
        if mode.endswith("A"):
            image.putalpha(0)  # transparent white must stay white, not become black
        image.save(tmp_path / "a.png")
        out = read_image(tmp_path / "a.png")
        assert out.dtype == np.uint8
        assert out.shape == (4, 6, 3)
        assert (out == 255).all()

    def test_sixteen_bits_are_refused_not_clipped(self, tmp_path):
        write(tmp_path / "a.png", np.full((4, 4), 40_000, np.uint16))
        with pytest.raises(BadImageError, match=r"a\.png: .*I;16 pixels, expected 8 bits"):
            read_image(tmp_path / "a.png")

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_truncated_file_is_named(self, tmp_path, suffix):
        path = write(tmp_path / f"half{suffix}", noise(64, 64))
        truncate(path)
        with pytest.raises(BadImageError, match=rf"half\{suffix}: cannot be read .*truncated"):
            read_image(path)

    def test_what_is_no_image_is_named(self, tmp_path):
        (tmp_path / "page.png").write_text("<html>404</html>")
        with pytest.raises(BadImageError, match=r"page\.png: .*cannot identify"):
            read_image(tmp_path / "page.png")
        with pytest.raises(BadImageError, match=r"absent\.png: .*No such file"):
            read_image(tmp_path / "absent.png")


class TestPhotographs:
    def test_splits(self):
        train, held_out = photographs("train"), photographs("held_out")
        assert sorted(held_out) == ["chelsea", "coffee", "rocket"]
        assert len(train) == 8
        assert {"motorcycle_left", "motorcycle_right"} <= set(train)
        assert not set(train) & set(held_out)
        for image in (*train.values(), *held_out.values()):
            assert image.dtype == np.uint8
            assert image.shape[2] == 3
            assert min(image.shape) == 3
            assert min(image.shape[:2]) >= 300
            assert image.std() > 10

    def test_unknown_split(self):
        with pytest.raises(ValueError, match="'test'; expected one of train, held_out"):
            photographs("test")


class TestLayouts:
    def test_benchmark_layout_reads_its_lr(self, tmp_path):
        hq, lq = noise(9, 13), noise(4, 6, seed=1)
        write(tmp_path / "HR/a.png", hq)
        write(tmp_path / "LR_bicubic/X2/ax2.png", lq)
        ((name, seen_lq, seen_hq),) = load_pairs(tmp_path, 2)
        assert name == "a"
        np.testing.assert_array_equal(seen_lq, lq)
        np.testing.assert_array_equal(seen_hq, hq[:8, :12])

    def test_other_suffix_and_same_name(self, tmp_path):
        write(tmp_path / "HR/a.bmp", noise(8, 8))
        write(tmp_path / "LR_bicubic/X2/a.png", noise(4, 4, seed=1))
        np.testing.assert_array_equal(load_pairs(str(tmp_path), 2)[0].lq, noise(4, 4, seed=1))

    def test_div2k_layout(self, tmp_path):
        for index in (2, 1):
            write(tmp_path / f"DIV2K_train_HR/000{index}.png", noise(12, 12, index))
            lr = tmp_path / f"DIV2K_train_LR_bicubic/X3/000{index}x3.png"
            write(lr, noise(4, 4, 10 + index))
        pairs = load_pairs(tmp_path, 3)
        assert [pair.name for pair in pairs] == ["0001", "0002"]
        for index, pair in enumerate(pairs, start=1):
            np.testing.assert_array_equal(pair.lq, noise(4, 4, 10 + index))

    def test_lr_of_other_scales_is_not_used(self, tmp_path):
        write(tmp_path / "HR/a.png", noise(12, 12))
        write(tmp_path / "LR_bicubic/X2/a.png", noise(6, 6, seed=1))
        expected = matlab_bicubic(noise(12, 12), 1 / 3)
        np.testing.assert_array_equal(load_pairs(tmp_path, 3)[0].lq, expected)

    def test_plain_folder_is_searched_and_degraded(self, tmp_path):
        write(tmp_path / "b.png", noise(9, 9))
        write(tmp_path / "deep/er/a.JPG", noise(16, 16))
        (tmp_path / "readme.txt").write_text("no image")
        (tmp_path / "._b.png").write_bytes(b"macOS leaves such files behind")
        pairs = load_pairs(tmp_path, 2)
        assert [pair.name for pair in pairs] == ["b", "deep/er/a"]
        assert pairs[0].hq.shape == (8, 8, 3)
        np.testing.assert_array_equal(pairs[0].lq, matlab_bicubic(noise(9, 9)[:8, :8], 1 / 2))

    def test_images_in_memory(self):
        (pair,) = pairs_from_images({"a": noise(11, 10)}, 4)
        assert pair.name == "a"
        assert pair.hq.shape == (8, 8, 3)
        np.testing.assert_array_equal(pair.lq, matlab_bicubic(noise(11, 10)[:8, :8], 1 / 4))


class TestWhatIsWrongOnDisk:
    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match="absent: found nothing; expected a folder"):
            load_pairs(tmp_path / "absent", 2)
        file = write(tmp_path / "a.png", noise(4, 4))
        with pytest.raises(ValueError, match=r"a\.png: found a file; expected a folder"):
            load_pairs(file, 2)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"empty: found no image; expected files .*\.png"):
            list_images(tmp_path / "empty")

    def test_hr_without_lr(self, tmp_path):
        write(tmp_path / "HR/a.png", noise(8, 8))
        write(tmp_path / "HR/b.png", noise(8, 8))
        write(tmp_path / "LR_bicubic/X2/a.png", noise(4, 4))
        with pytest.raises(ValueError, match=r"b\.png: no LR image; expected .*X2.b or bx2"):
            load_pairs(tmp_path, 2)

    def test_wrong_scale_names_file_sizes_and_scale(self, tmp_path):
        write(tmp_path / "HR/a.png", noise(12, 24))
        write(tmp_path / "LR_bicubic/X2/a.png", noise(4, 8))
        message = r"a\.png: HR is 24x12, .*a\.png is 8x4; expected 12x6 for scale 2"
        with pytest.raises(ValueError, match=message):
            load_pairs(tmp_path, 2)

    def test_too_small_for_the_scale(self, tmp_path):
        write(tmp_path / "a.png", noise(3, 9))
        with pytest.raises(ValueError, match=r"a\.png: HR is 9x3; expected at least 4 a side"):
            load_pairs(tmp_path, 4)
        with pytest.raises(ValueError, match="scale 0; expected 1 or more"):
            load_pairs(tmp_path, 0)

    def test_lr_of_a_data_set_further_down_does_not_pass_for_hr(self, tmp_path):
        write(tmp_path / "Set5/HR/a.png", noise(8, 8))
        write(tmp_path / "Set5/LR_bicubic/X2/a.png", noise(4, 4))
        with pytest.raises(ValueError, match="LR_bicubic: named as LR images are; expected"):
            load_pairs(tmp_path, 2)

    def test_two_files_of_one_name(self, tmp_path):
        write(tmp_path / "a.png", noise(8, 8))
        write(tmp_path / "a.jpg", noise(8, 8))
        with pytest.raises(ValueError, match=r"a\.png and a\.jpg share a name"):
            load_pairs(tmp_path, 2)

    def test_truncated_hr_stops_or_is_skipped(self, tmp_path, capsys):
        write(tmp_path / "a.png", noise(32, 32))
        truncate(write(tmp_path / "b.png", noise(64, 64)))
        with pytest.raises(BadImageError, match=r"b\.png: .*truncated.*--skip-bad"):
            load_pairs(tmp_path, 2)
        assert [pair.name for pair in load_pairs(tmp_path, 2, skip_bad=True)] == ["a"]
        assert "warning: left out" in (warning := capsys.readouterr().err)
        assert "b.png" in warning

    def test_truncated_lr_is_a_bad_image_too(self, tmp_path):
        write(tmp_path / "HR/a.png", noise(128, 128))
        truncate(write(tmp_path / "LR_bicubic/X2/a.png", noise(64, 64)))
        with pytest.raises(BadImageError, match=r"X2.a\.png: "):
            load_pairs(tmp_path, 2)
        with pytest.raises(ValueError, match="every image is unreadable"):
            load_pairs(tmp_path, 2, skip_bad=True)


class TestRandomCrops:
    def crops(self, seed=0, length=16):
        pairs = pairs_from_images({"a": noise(40, 60), "b": noise(80, 50, 1)}, 2)
        return RandomCrops(pairs, crop=8, scale=2, length=length, seed=seed)

    def test_items(self):
        crops = self.crops()
        assert len(crops) == len(list(crops)) == 16
        for lq, hq in crops:
            assert lq.dtype == hq.dtype == torch.float32
            assert lq.shape == (3, 8, 8)
            assert hq.shape == (3, 16, 16)
            assert lq.min() >= 0
            assert hq.max() <= 1

    def test_an_item_depends_on_seed_and_index_alone(self):
        once, again = self.crops(), self.crops(length=99)
        backwards = [again[i] for i in reversed(range(16))][::-1]
        for (lq, hq), (other_lq, other_hq) in zip(once, backwards, strict=True):
            assert torch.equal(lq, other_lq)
            assert torch.equal(hq, other_hq)

    def test_workers_change_nothing(self):
        crops = self.crops(length=6)
        loaded = DataLoader(crops, batch_size=1, num_workers=2)
        for (lq, hq), (batched_lq, batched_hq) in zip(crops, loaded, strict=True):
            assert torch.equal(lq, batched_lq[0])
            assert torch.equal(hq, batched_hq[0])

    def test_global_generators_are_neither_read_nor_moved(self):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = self.crops()[3][0]
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(2)
        np.random.seed(2)
        assert torch.equal(first, self.crops()[3][0])

    def test_seeds_and_items_differ(self):
        items = [*self.crops(seed=0), *self.crops(seed=1)]
        assert len({lq.numpy().tobytes() for lq, _ in items}) == 32

    def test_lr_and_hr_show_the_same_place_the_same_way_round(self):
        lq = noise(20, 30)
        pair = Pair("a", lq, lq.repeat(3, axis=0).repeat(3, axis=1))
        for small, large in RandomCrops([pair], crop=7, scale=3, length=32, seed=0):
            assert torch.equal(small.repeat_interleave(3, 1).repeat_interleave(3, 2), large)

    def test_all_eight_orientations_occur_and_no_other(self):
        lq = noise(4, 4)
        crops = RandomCrops([Pair("a", lq, lq)], crop=4, scale=1, length=200, seed=0)
        square = torch.from_numpy(lq).permute(2, 0, 1).float() / 255
        turned = [torch.rot90(square, k, (1, 2)) for k in range(4)]
        expected = {t.numpy().tobytes() for t in (*turned, *(t.flip(2) for t in turned))}
        assert {item.contiguous().numpy().tobytes() for item, _ in crops} == expected

    def test_every_position_is_reached(self):
        lq = np.arange(9, dtype=np.uint8).reshape(3, 3, 1).repeat(3, axis=2)
        crops = RandomCrops([Pair("a", lq, lq)], crop=1, scale=1, length=300, seed=0)
        assert {round(item[0, 0, 0].item() * 255) for item, _ in crops} == set(range(9))

    def test_images_are_drawn_by_area(self):
        dark, light = np.zeros((10, 10, 3), np.uint8), np.full((10, 30, 3), 255, np.uint8)
        pairs = [Pair("dark", dark, dark), Pair("light", light, light)]
        crops = RandomCrops(pairs, crop=2, scale=1, length=2000, seed=0)
        assert 0.7 < np.mean([lq.mean().item() for lq, _ in crops]) < 0.8

    def test_refusals(self):
        pairs = pairs_from_images({"wide": noise(14, 60)}, 2)
        with pytest.raises(ValueError, match="wide: LR is 30x7; expected 8x8 or more"):
            RandomCrops(pairs, crop=8, scale=2, length=4, seed=0)
        with pytest.raises(ValueError, match="got no pairs"):
            RandomCrops([], crop=8, scale=2, length=4, seed=0)
        with pytest.raises(IndexError, match="item 16; expected 0 to 15"):
            self.crops()[16]
