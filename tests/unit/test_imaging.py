"""Text is found, read and removed; other pixels stay as they are; invalid files are refused."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import threading
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flux_async import imaging
from flux_async.imaging import ocr, strokes, text_detection
from flux_async.imaging import removal as removal_module
from flux_async.imaging.arrays import Window, dilate, fill_smoothly
from flux_async.imaging.filling import Fill, fill_hole
from flux_async.imaging.patch_fill import fill_with_patches
from flux_async.imaging.strokes import measure_contrast
from flux_async.imaging.text_detection import TextRegion, covered
from flux_async.sandbox import samples

DRAWN = ("market-poster", "chinese-banner", "coffee-badge", "beach-club")


@cache
def removal_of(name):
    """Return a drawn sample and its removal, worked out once, where a test needs it."""
    sample = samples.draw_sample(name)
    return sample, imaging.remove_text(sample.image)


def noise(shape, *, seed=3):
    """Return a grainy grey image."""
    grain = np.random.default_rng(seed).normal(128, 12, (*shape, 3))
    return np.clip(grain, 0, 255).astype(np.uint8)


def region_at(window):
    """Return a level region that fills a window."""
    right, bottom = window.right - 1, window.bottom - 1
    corners = [(window.left, window.top), (right, window.top), (right, bottom), (window.left, bottom)]
    return TextRegion.of(np.array(corners, np.float32), (window.bottom, window.right), certain=True)


def text_found(sample, quality=imaging.Quality.FAST):
    """Return the share of the text's pixels that lie in the regions that were found."""
    text = np.abs(sample.image.astype(int) - sample.clean).max(2) > 40
    return covered(imaging.find_text(sample.image, quality=quality), text.shape)[text].mean()


def run_alone(code):
    """Run code in an interpreter of its own and return what it printed to stdout and stderr."""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    return done.stdout + done.stderr


def psnr(one, other, where):
    """Return the peak signal to noise ratio in decibels, over a part of the image."""
    error = (one.astype(np.float64) - other)[where]
    return 10 * np.log10(255**2 / max((error**2).mean(), 0.05))


def encoded(image, kind="PNG", **options):
    """Return the bytes of a Pillow image."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


class TestRemoval:
    @pytest.mark.parametrize("name", DRAWN)
    def test_no_readable_text_is_left(self, name):
        """Where text was, nothing can be read any more."""
        _, removal = removal_of(name)
        assert imaging.read_text(removal.image) == ()

    @pytest.mark.parametrize("name", DRAWN)
    def test_only_the_hole_differs(self, name):
        """Every pixel outside the hole is exactly what it was."""
        sample, removal = removal_of(name)
        assert (removal.image == sample.image)[~removal.hole].all()
        assert 0.001 < removal.hole.mean() < 0.3

    @pytest.mark.parametrize(
        ("name", "floor"),
        [("market-poster", 55), ("chinese-banner", 55), ("coffee-badge", 50), ("beach-club", 55)],
    )
    def test_the_filled_text_is_close_to_the_clean_image(self, name, floor):
        """Where text was, the result is close to the image the sample was made from."""
        sample, removal = removal_of(name)
        text = np.abs(sample.image.astype(int) - sample.clean).max(2) > 6
        assert psnr(removal.image, sample.clean, dilate(text, 3)) > floor

    def test_regions_and_passes_are_reported(self):
        """A poster of six lines has six regions, and the first pass worked on all of them."""
        _, removal = removal_of("market-poster")
        assert len(removal.regions) == 6
        assert removal.passes[0] == 6

    def test_the_same_image_gives_the_same_bytes(self):
        """Two runs give the same image, whatever the state of the random generators around them."""
        sample, first = removal_of("coffee-badge")
        np.random.default_rng()
        assert imaging.remove_text(sample.image).image.tobytes() == first.image.tobytes()

    def test_threads_do_not_disturb_each_other(self):
        """Two threads at once get what one alone gets."""
        sample, alone = removal_of("beach-club")
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(imaging.remove_text(sample.image)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all((result.image == alone.image).all() for result in results)

    @pytest.mark.parametrize("name", ["beach-club", "slide"])
    def test_a_image_without_text_stays_as_it_is(self, name):
        """Hardly a pixel of an image without text changes."""
        clean = samples.draw_sample(name).clean
        assert imaging.remove_text(clean, quality=imaging.Quality.GOOD).hole.mean() < 0.002

    def test_good_quality_finds_small_print(self):
        """The second, closer pass cleans a page of small print."""
        sample = samples.draw_sample("letter")
        removal = imaging.remove_text(sample.image, quality=imaging.Quality.GOOD)
        assert imaging.read_text(removal.image, quality=imaging.Quality.GOOD) == ()

    @pytest.mark.parametrize("shape", [(1, 1), (8, 8), (1, 900), (900, 2), (3, 40), (33, 31)])
    def test_odd_shapes_do_not_crash(self, shape):
        """Tiny and extremely long images come back with the same shape."""
        image = noise(shape)
        assert imaging.remove_text(image, quality=imaging.Quality.GOOD).image.shape == image.shape

    def test_large_images_are_filled_from_a_smaller_copy(self, monkeypatch):
        """Above the working size text is still removed, and still nothing outside the hole changes."""
        monkeypatch.setattr("flux_async.imaging.removal.WORKING_PIXELS", 250_000)
        sample = samples.draw_sample("beach-club")
        removal = imaging.remove_text(sample.image)
        assert imaging.read_text(removal.image) == ()
        assert (removal.image == sample.image)[~removal.hole].all()
        assert all(region.mask.shape == region.window.shape for region in removal.regions)

    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((4, 4, 3)),
            np.zeros((0, 4, 3), np.uint8),
        ],
    )
    def test_anything_but_rgb_bytes_is_refused(self, image):
        """Greyscale, RGBA, floats and empty arrays raise a ValueError."""
        with pytest.raises(ValueError, match="expected uint8 RGB"):
            imaging.remove_text(image)


class TestPasses:
    def test_a_line_missed_at_first_is_removed_in_the_second_pass(self, monkeypatch):
        """What can still be read in the result is removed in another pass."""
        polls = []

        def half_blind(image, **options):
            polls.append(options)
            found = text_detection.find_text(image, **options)
            return found[:1] if len(polls) == 1 else found

        monkeypatch.setattr(removal_module, "find_text", half_blind)
        removal = imaging.remove_text(samples.draw_sample("beach-club").image)
        assert removal.passes == (1, 1)
        assert len(removal.regions) == 2
        assert imaging.read_text(removal.image) == ()

    def test_traces_of_removed_text_are_removed_too(self, monkeypatch):
        """Letters that survive the first fill are taken whole in the second pass."""

        def half_a_mask(image, regions):
            mask = strokes.stroke_mask(image, regions)
            mask[:, 400:] = False
            return mask

        monkeypatch.setattr(removal_module, "stroke_mask", half_a_mask)
        removal = imaging.remove_text(samples.draw_sample("chinese-banner").image)
        assert len(removal.passes) == 2
        assert imaging.read_text(removal.image) == ()

    def test_ink_is_found_by_contrast_if_colours_do_not_differ(self):
        """Both witnesses together mark the letters and little else."""
        sample = samples.draw_sample("market-poster")
        truth = np.abs(sample.image.astype(int) - sample.clean).max(2) > 60
        region = imaging.find_text(sample.image)[0]
        window = strokes.surroundings(region, sample.image.shape)
        evidence = measure_contrast(sample.image, region, window, np.zeros(window.shape, bool))
        letters = truth[window.slices] & evidence.inside
        for marked in (evidence.agreed(), evidence.either()):
            assert marked[letters].mean() > 0.95
            assert marked[evidence.inside & ~dilate(letters, 3)].mean() < 0.05

    def test_without_surroundings_there_is_no_evidence(self):
        """A line that fills the whole image has no background to compare with."""
        whole = Window(0, 0, 20, 40)
        full = np.ones(whole.shape, bool)
        region = region_at(whole)
        assert measure_contrast(noise((20, 40)), region, whole, ~full) is None

    def test_an_unreadable_region_is_left_alone(self):
        """Where no method finds ink and nothing can be read, nothing is masked."""
        window = Window(20, 20, 60, 180)
        region = region_at(window)
        flat = np.full((80, 200, 3), 90, np.uint8)
        assert not strokes.stroke_mask(flat, [region]).any()
        assert strokes.trace_mask(flat, [region]).any()

    def test_transparent_text_across_several_backgrounds_is_masked_whole(self):
        """Every letter of a watermark is masked, also at the ends of a line that crosses hills and sky."""
        sample = samples.draw_sample("watermark")
        text = np.abs(sample.image.astype(int) - sample.clean).max(2) > 6
        assert imaging.remove_text(sample.image).hole[text].mean() > 0.99

    def test_the_mask_on_a_smooth_background_is_close_to_the_letters(self):
        """What looks like a smooth background is left out of the mask: a smaller hole is filled better."""
        sample, removal = removal_of("chinese-banner")
        text = np.abs(sample.image.astype(int) - sample.clean).max(2) > 6
        assert removal.hole[text].all()
        assert removal.hole.sum() < 2.1 * text.sum()

    def test_edges_beside_a_bent_line_are_not_masked(self):
        """The box of a bent line also contains pieces of the badge's edges, which stay as they are."""
        sample = samples.draw_sample("coffee-badge")
        text = np.abs(sample.image.astype(int) - sample.clean).max(2) > 6
        hole = imaging.remove_text(sample.image, quality=imaging.Quality.GOOD).hole
        assert not (hole & ~dilate(text, 20)).any()

    def test_a_soft_shadow_is_masked_with_its_letters(self):
        """On a smooth background the shadow of the letters is part of the mask."""
        plain = np.broadcast_to(np.linspace(150, 220, 640)[None, :, None], (240, 640, 3)).astype(np.uint8)
        sheet = samples.Sheet.over(plain)
        sheet.write("SOFT SHADOW", (60, 150), samples.Style(size=72, weight=700, shadow=0.5))
        text = np.abs(sheet.pixels.astype(int) - plain).max(2) > 6
        assert imaging.remove_text(sheet.pixels).hole[text].mean() > 0.99


class TestDetection:
    @pytest.mark.parametrize(
        "name", ["chinese-banner", "three-scripts", "deep-field", "watermark", "coffee-badge", "street-art"]
    )
    def test_text_of_any_script_direction_and_shape_is_found(self, name):
        """Chinese, Cyrillic, Japanese, Korean, rotated, tiled, bent and dancing text is found."""
        assert text_found(samples.draw_sample(name)) > 0.98

    def test_small_print_is_found_in_good_quality(self):
        """The second detection finds every line of a page of small print."""
        assert text_found(samples.draw_sample("letter"), imaging.Quality.GOOD) > 0.98

    def test_a_box_encloses_its_line_closely(self):
        """The corners of a rotated line lie around its pixels, and not far away."""
        sheet = samples.Sheet.over(np.full((480, 640, 3), 235, np.uint8))
        sheet.write("ROTATED", (150, 330), samples.Style(size=64, weight=700, colour=(20, 20, 90), turn=20))
        (box,) = ocr.detect_boxes(sheet.pixels, 736)
        region = TextRegion.of(box.corners, sheet.pixels.shape, certain=box.certain)
        ink = sheet.pixels.max(2) < 150
        assert region.mask[ink[region.window.slices]].sum() == ink.sum()
        assert ink.sum() > 0.2 * region.area
        assert 40 < region.height < 90
        assert region.certain

    def test_a_certain_line_is_distinguished_from_an_uncertain_one_beside_it(self):
        """The score belongs to its own line, whatever the order in which RapidOCR lists boxes and scores."""
        image = text_detection.raise_contrast(samples.draw_sample("magazine").image)
        boxes = ocr.detect_boxes(image, 1408)
        skyline = [box for box in boxes if 300 < box.corners[0, 1] < 400]
        title = [box for box in boxes if box.corners[0, 1] < 60]
        assert [box.certain for box in title] == [True]
        assert [box.certain for box in skyline] == [False]

    def test_text_is_found_in_a_part_of_an_image(self):
        """At its place in the whole image; text outside the part is not."""
        sample = samples.draw_sample("market-poster")
        every = imaging.find_text(sample.image)
        lowest = max(every, key=lambda region: region.window.top)
        (part,) = text_detection.windows_around([lowest.window], 40, sample.image.shape)
        (found,) = imaging.find_text(sample.image, within=[part])
        shared = found.window.overlap(lowest.window)
        assert shared.area > 0.8 * max(found.window.area, lowest.window.area)
        assert imaging.find_text(sample.image, within=[]) == ()

    @pytest.mark.parametrize(
        ("boxes", "count"),
        [
            ([], 0),
            ([Window(100, 100, 130, 200)], 1),
            ([Window(100, 100, 130, 200), Window(1900, 1700, 1930, 1800)], 2),
            ([Window(100, 100, 130, 200), Window(150, 100, 180, 220)], 1),
        ],
        ids=["nothing", "one", "far apart", "close together"],
    )
    def test_windows_contain_their_boxes(self, boxes, count):
        """With a margin, in few windows that cover little of the image."""
        windows = text_detection.windows_around(boxes, 20, (2000, 2000))
        assert len(windows) == count
        for box in boxes:
            assert any(window.joined(box.grown(20, (2000, 2000))) == window for window in windows)
        assert sum(window.area for window in windows) < 2000 * 2000 / 5

    def test_boxes_all_over_an_image_are_looked_for_in_all_of_it(self):
        """Many windows would take longer than the image."""
        boxes = [Window(y, x, y + 40, x + 40) for y in range(0, 360, 60) for x in range(0, 360, 60)]
        assert text_detection.windows_around(boxes, 20, (400, 400)) == (Window(0, 0, 400, 400),)

    def test_a_model_does_not_run_again_for_the_same_image(self):
        """Only the last answer is kept."""
        calls = []
        model = ocr.LastResult(lambda values: calls.append(values) or values + 1)
        one, other = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
        assert [float(model(values).sum()) for values in (one, one.copy(), other, one)] == [6, 6, 12, 6]
        assert len(calls) == 3

    def test_a_region_keeps_its_geometry_in_a_larger_image(self):
        """A region scaled to twice the size is twice as high and long, at twice the position."""
        region = region_at(Window(10, 20, 30, 100)).scaled((200, 300), (400, 600))
        assert (region.window.top, region.window.left) == (20, 40)
        assert (region.height, region.length) == (38, 158)
        assert region.mask.all()

    def test_no_download_and_no_connection(self):
        """Text is found and read while every socket is refused."""
        code = (
            "import socket\n"
            "def refuse(*_, **__): raise AssertionError('a connection was tried')\n"
            "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
            "from flux_async import imaging\n"
            "from flux_async.sandbox import samples\n"
            "print(len(imaging.read_text(samples.draw_sample('chinese-banner').image)))"
        )
        assert run_alone(code) == "3\n"

    def test_nothing_is_logged_and_logging_stays_as_it_was(self):
        """Even where RapidOCR finds nothing it prints nothing; the root logger is not changed."""
        code = (
            "import logging\n"
            "root = logging.getLogger()\n"
            "before = (root.level, list(root.handlers), logging.root.manager.disable)\n"
            "import numpy\n"
            "from flux_async import imaging\n"
            "assert imaging.find_text(numpy.full((90, 90, 3), 80, numpy.uint8)) == ()\n"
            "assert before == (root.level, list(root.handlers), logging.root.manager.disable)"
        )
        assert run_alone(code) == ""


class TestReading:
    def test_text_is_read_in_several_scripts(self):
        """Latin and Chinese lines are read as they were written."""
        read = {line.text for line in imaging.read_text(samples.draw_sample("chinese-banner").image)}
        assert "全场五折优惠" in read

    def test_turned_text_is_read(self):
        """A line that runs uphill is cut out level before it is read."""
        image = Image.new("RGB", (640, 640), (20, 30, 60))
        sheet = samples.Sheet.over(np.asarray(image))
        sheet.write("UPHILL ROAD", (120, 420), samples.Style(size=72, weight=700, turn=30))
        (line,) = imaging.read_text(sheet.pixels)
        assert line.text.replace(" ", "") == "UPHILLROAD"
        assert line.confidence > 0.9

    @pytest.mark.parametrize(
        ("text", "confidence", "legible"),
        [
            ("SALE", 0.7, True),
            ("SALE", 0.5, False),
            ("A", 0.99, False),
            ("0000", 0.99, False),
            ("C000", 0.83, False),
            ("1000", 0.97, True),
            ("SEE", 0.7, True),
            ("--", 0.9, False),
        ],
    )
    def test_a_pattern_that_is_read_as_one_letter_is_no_text(self, text, confidence, legible):
        """Nor are single letters, and letters that are read with little confidence."""
        region = region_at(Window(10, 10, 30, 80))
        line = text_detection.TextLine(region=region, text=text, confidence=confidence)
        assert line.is_legible() is legible

    def test_unsure_lines_are_left_out(self):
        """Asking for more confidence than there can be leaves nothing."""
        image = samples.draw_sample("market-poster").image
        assert imaging.read_text(image, least_confidence=1.1) == ()

    def test_nothing_is_found_in_noise(self):
        """Noise is not text."""
        assert imaging.find_text(noise((300, 400)), quality=imaging.Quality.GOOD) == ()


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
        """A fill on a grainy background is about as grainy as the background."""
        ground = noise((120, 160))
        hole = np.zeros(ground.shape[:2], bool)
        hole[40:80, 40:120] = True
        filled = fill_hole(ground, hole, Fill.SMOOTH)
        assert filled[hole].std() > 0.4 * ground[~hole].std()

    def test_an_edge_beside_the_hole_is_not_copied_as_grain(self):
        """A flat background with a sharp edge nearby is filled flat."""
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
        """An image that is all hole comes back finite."""
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
        decoded = imaging.decode_image(encoded(image, kind))
        assert decoded.pixels.dtype == np.uint8
        assert decoded.pixels.shape == (3, 5, 3)
        assert decoded.size == (5, 3)
        if mode != "1":
            assert np.abs(decoded.pixels.astype(int) - 200).max() <= 3

    def test_the_exif_rotation_is_applied(self):
        """A photograph stored on its side comes out upright."""
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encoded(Image.new("RGB", (6, 4)), "JPEG", exif=exif)
        assert imaging.decode_image(data).size == (4, 6)

    def test_transparency_is_kept_apart_and_can_be_written_again(self):
        """Alpha survives a round trip; an opaque alpha channel counts as none."""
        image = Image.new("RGBA", (4, 4), (10, 20, 30, 77))
        decoded = imaging.decode_image(encoded(image))
        again = imaging.decode_image(imaging.encode_image(decoded.pixels, alpha=decoded.alpha))
        assert again.alpha is not None
        assert (again.alpha == 77).all()
        assert imaging.decode_image(encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 255)))).alpha is None

    @pytest.mark.parametrize("kind", ["GIF", "WEBP"])
    def test_the_first_frame_of_an_animation_is_taken(self, kind):
        """An animated file gives its first image."""
        first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
        data = encoded(first, kind, save_all=True, append_images=[second])
        image = imaging.decode_image(data)
        assert image.format.value == kind
        assert image.pixels[..., 0].min() > 230

    def test_several_images_in_one_jpeg_file_give_the_first(self):
        """Phones and cameras write such files (MPO)."""
        first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
        data = encoded(first, "MPO", save_all=True, append_images=[second])
        image = imaging.decode_image(data)
        assert image.format is imaging.ImageFormat.JPEG
        assert image.pixels[..., 0].min() > 230

    def test_transparent_pixels_are_white_in_a_jpeg(self):
        """JPEG has no opacity; the colour below a transparent pixel means nothing."""
        pixels = np.zeros((16, 32, 3), np.uint8)
        alpha = np.full((16, 32), 255, np.uint8)
        alpha[:, 16:] = 0
        data = imaging.encode_image(pixels, imaging.ImageFormat.JPEG, alpha=alpha)
        again = imaging.decode_image(data).pixels
        assert again[:, 24:].min() > 245
        assert again[:, :8].max() < 10

    def test_an_empty_file_is_refused(self):
        """Zero bytes are no image."""
        with pytest.raises(imaging.ImageError, match="no bytes"):
            imaging.decode_image(b"")

    @pytest.mark.parametrize("data", [b"<html>not found</html>", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"])
    def test_other_bytes_are_refused(self, data):
        """Bytes of another kind raise ImageError."""
        with pytest.raises(imaging.ImageError):
            imaging.decode_image(data)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
    def test_a_truncated_file_is_refused(self, kind):
        """Half a file raises ImageError instead of giving half an image."""
        data = encoded(Image.fromarray(noise((64, 64))), kind)
        with pytest.raises(imaging.ImageError):
            imaging.decode_image(data[: len(data) // 2])

    def test_too_many_pixels_are_refused_before_decoding(self):
        """The header is enough to refuse: the data behind it need not even be there."""
        data = encoded(Image.new("L", (2000, 2000)))
        with pytest.raises(imaging.ImageError, match="2000 x 2000"):
            imaging.decode_image(data[:60], max_pixels=1_000_000)

    def test_image_errors_are_value_errors(self):
        """Callers can catch ValueError."""
        assert issubclass(imaging.ImageError, ValueError)

    @given(data=st.binary(max_size=400))
    @settings(max_examples=150, deadline=None)
    def test_arbitrary_bytes_raise_nothing_else(self, data):
        """Whatever the bytes, the only error is ImageError."""
        with contextlib.suppress(imaging.ImageError):
            imaging.decode_image(data)

    @given(
        place=st.integers(0, 10_000),
        byte=st.integers(0, 255),
        kind=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF"]),
    )
    @settings(max_examples=150, deadline=None)
    def test_damaged_files_raise_nothing_else(self, place, byte, kind):
        """A file with one byte changed decodes or raises ImageError."""
        data = bytearray(encoded(Image.new("RGB", (16, 16), (9, 99, 199)), kind))
        data[place % len(data)] = byte
        with contextlib.suppress(imaging.ImageError):
            imaging.decode_image(bytes(data), max_pixels=10_000)


class TestEncoding:
    @pytest.mark.parametrize("kind", imaging.ImageFormat)
    def test_encoded_images_can_be_decoded(self, kind):
        """Every format can be written and read back in its size."""
        data = imaging.encode_image(noise((20, 30)), kind, 90)
        assert imaging.decode_image(data).size == (30, 20)

    def test_png_is_lossless(self):
        """PNG gives back the same bytes."""
        image = noise((20, 30))
        assert (imaging.decode_image(imaging.encode_image(image)).pixels == image).all()

    @pytest.mark.parametrize(
        "array", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 3), np.uint8)]
    )
    def test_other_arrays_are_refused(self, array):
        """Wrong dtypes, channel counts and empty arrays raise ImageError."""
        with pytest.raises(imaging.ImageError, match="expected a uint8"):
            imaging.encode_image(array)

    def test_an_image_too_large_for_its_format_is_refused(self):
        """An image too long for WebP raises ImageError."""
        with pytest.raises(imaging.ImageError, match="cannot be written as WEBP"):
            imaging.encode_image(np.zeros((1, 20_000, 3), np.uint8), imaging.ImageFormat.WEBP)


class TestInstallation:
    def test_importing_the_package_loads_nothing(self):
        """`import flux_async.imaging` works without numpy, OpenCV and Pillow."""
        code = "import sys, flux_async.imaging; assert not {'numpy', 'cv2', 'PIL'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_without_the_extra_the_first_use_names_it(self):
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

    @pytest.mark.parametrize("package", ["rapidocr", "onnxruntime"])
    def test_a_missing_package_is_named_with_the_extra(self, monkeypatch, package):
        """Without rapidocr or onnxruntime the error names both the package and the extra."""
        find = ocr.importlib.util.find_spec
        monkeypatch.setattr(
            ocr.importlib.util, "find_spec", lambda name: None if name == package else find(name)
        )
        with pytest.raises(imaging.ModelsMissingError, match=rf"{package}.*flux-async\[imaging\]"):
            ocr.Engine(ocr.DETECTION).run(noise((64, 64)))

    def test_a_missing_model_is_named(self):
        """A model that the installed rapidocr does not carry is named in the error."""
        with pytest.raises(imaging.ModelsMissingError, match=r"nothing\.onnx"):
            ocr.model_file("nothing.onnx")

    def test_every_public_name_resolves(self):
        """Each name of `__all__` resolves; others raise AttributeError."""
        assert all(getattr(imaging, name) is not None for name in imaging.__all__)
        assert dir(imaging) == sorted(imaging.__all__)
        with pytest.raises(AttributeError):
            _ = imaging.nothing
