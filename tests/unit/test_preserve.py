"""preserve: text areas come from the result, every other pixel is the original's; in doubt it refuses."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zlib

import attrs
import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from flux_async import InvalidInput, PreserveRefusal, PreserveReport, preserve
from flux_async.imaging.arrays import Window, gaussian, lab
from flux_async.imaging.image_codec import open_image
from flux_async.imaging.text_detection import TextRegion
from flux_async.sandbox.drawing import Sheet, Style, gradient
from flux_async.verification.alignment import align, residual_shift
from flux_async.verification.changes import difference, find_changed
from flux_async.verification.channels import to_own_channels
from flux_async.verification.colours import fit_tone, to_rgb
from flux_async.verification.composition import compose, judge
from flux_async.verification.filling import border_step
from flux_async.verification.grain import add_grain
from flux_async.verification.grid import grow, size_matrix, spread, warp
from flux_async.verification.holes import Changes, Hole, find_changes
from flux_async.verification.loading import load, unsupported, write
from flux_async.verification.scene import make_scene, overlay_result
from flux_async.verification.sharpness import fit_sharpening, sharpened
from flux_async.verification.text_areas import TextLines

SHAPE = (192, 256)
TEXT = Window(80, 56, 112, 200)
MODES = ("RGB", "L", "RGBA", "LA", "P", "CMYK")


def blobs(shape=SHAPE, *, seed=1, sigma=3.0):
    """Return a colourful image with structure everywhere and no text."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(*shape, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(values, (0, 0), sigma) + cv2.GaussianBlur(values, (0, 0), 4 * sigma) * 2
    return np.clip(128 + smooth / smooth.std() * 36, 0, 255).astype(np.uint8)


def with_text(clean, window=TEXT, colour=(250, 250, 250)):
    """Return the image with fat letters in a window."""
    drawn = clean.copy()
    size = window.bottom - window.top
    place = (window.left + 4, window.bottom - 6)
    cv2.putText(drawn, "GHOST", place, cv2.FONT_HERSHEY_DUPLEX, size / 28, colour, 5, cv2.LINE_AA)
    return drawn


def region_at(window):
    """Return a level line of text that fills a window."""
    right, bottom = window.right - 1, window.bottom - 1
    corners = [(window.left, window.top), (right, window.top), (right, bottom), (window.left, bottom)]
    return TextRegion.of(np.array(corners, np.float32), SHAPE, certain=True)


LINES = TextLines(regions=(region_at(TEXT),), shape=SHAPE)
CLEAN = blobs()
DRAWN = with_text(CLEAN)
MOVED = np.array([[1.01, 0.004, -2.3], [-0.004, 1.008, 1.7], [0, 0, 1]])
"""Where a pixel of the original is in the result."""


def editors(clean, matrix=MOVED):
    """Return what an editor makes of a clean image: moved, stretched, with other colours, as JPEG."""
    moved = cv2.warpPerspective(clean, matrix, SHAPE[::-1], borderMode=cv2.BORDER_REFLECT_101)
    tinted = np.clip(moved * np.float32([0.96, 1.0, 1.03]) + np.float32([6, -3, 2]), 0, 255).astype(np.uint8)
    return decoded(encoded(Image.fromarray(tinted), "JPEG", quality=92))


def encoded(image, kind="PNG", **options):
    """Return the bytes of a Pillow image."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(data):
    """Return the RGB pixels of a file."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def loaded(image, kind="PNG", **options):
    """Return a Pillow image as it is loaded from a file."""
    return load(open_image(encoded(image, kind, **options)))


def png(width, height, depth=8, colour=2, raw=b""):
    """Return a PNG file made by hand."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def psnr(one, other, where):
    """Return the peak signal to noise ratio in decibels, over a part of the image."""
    error = (one.astype(np.float64) - other)[where]
    return 10 * np.log10(255**2 / max((error**2).mean(), 0.05))


def composed(original, result, lines=LINES):
    """Return the composition, made without the text models."""
    return compose(original, result, lines, search=False)


@pytest.fixture(scope="module")
def usual():
    """The usual case: an RGB original and a moved, tinted result without the text."""
    return composed(loaded(Image.fromarray(DRAWN)), editors(CLEAN))


class TestComposing:
    def test_every_pixel_outside_the_text_areas_is_the_originals(self, usual):
        """The hole contains all text and little else; beside it nothing was written."""
        changed = usual.filled.changed
        text = np.abs(DRAWN.astype(int) - CLEAN).max(2) > 24
        assert (usual.filled.pixels[~changed] == DRAWN[~changed]).all()
        assert changed[text].all()
        assert changed.sum() < 4 * text.sum()
        assert usual.report.verdict == "composed"
        assert usual.report.reason == ""

    def test_text_areas_are_close_to_the_clean_image(self, usual):
        """Aligned and matched in colour, they are much closer than the resized result."""
        changed = usual.filled.changed
        assert psnr(usual.filled.pixels, CLEAN, changed) > 30
        assert psnr(usual.filled.pixels, CLEAN, changed) > psnr(editors(CLEAN), CLEAN, changed) + 8

    def test_the_report_says_how_the_result_lay(self, usual):
        """Scale and shift are those of the editor, in pixels of the original."""
        report = usual.report
        assert report.scale == pytest.approx(1.009, abs=0.001)
        centre = MOVED @ [SHAPE[1] / 2, SHAPE[0] / 2, 1] - [SHAPE[1] / 2, SHAPE[0] / 2, 1]
        assert report.shift == pytest.approx(centre[:2], abs=0.2)
        assert np.abs(np.array(report.alignment) - MOVED[:2]).max() < 0.2
        assert report.residual_px < 0.5
        assert report.match > 0.95
        assert report.replaced == usual.filled.changed.mean()
        assert abs(report.seam) < 3

    def test_the_same_input_gives_the_same_bytes(self, usual):
        """Nothing is random."""
        again = composed(loaded(Image.fromarray(DRAWN)), editors(CLEAN))
        assert again.report == usual.report
        original = loaded(Image.fromarray(DRAWN))
        files = {write(original, each.filled.channels, "png")[0] for each in (usual, again)}
        assert len(files) == 1

    def test_a_result_of_another_size_is_laid_over(self):
        """Smaller or larger results, also of another ratio, are scaled."""
        for shape in ((160, 282), (384, 512)):
            result = cv2.resize(CLEAN, shape[::-1], interpolation=cv2.INTER_AREA)
            composition = composed(loaded(Image.fromarray(DRAWN)), result)
            assert composition.report.reason == ""
            assert psnr(composition.filled.pixels, CLEAN, composition.filled.changed) > 27

    def test_something_else_that_changed_far_away_is_not_taken(self):
        """A hallucinated disc in a corner stays out of the composed image."""
        edited = CLEAN.copy()
        cv2.circle(edited, (224, 32), 12, (255, 0, 0), -1)
        composition = composed(loaded(Image.fromarray(DRAWN)), editors(edited))
        assert not composition.filled.changed[10:54, 202:246].any()

    def test_a_flat_graphic_is_laid_over_by_size(self):
        """Where there is nothing to align by, nothing can be misplaced either."""
        clean = gradient(SHAPE[::-1], (200, 60, 60), (230, 90, 80))
        composition = composed(loaded(Image.fromarray(with_text(clean))), editors(clean, np.eye(3)))
        assert composition.report.match == 1
        assert psnr(composition.filled.pixels, clean, composition.filled.changed) > 35


class TestModes:
    @pytest.mark.parametrize("mode", MODES)
    def test_a_file_keeps_its_mode_and_its_pixels_outside(self, mode):
        """Whatever the file's own channels are, those outside the hole are the same bytes."""
        image = Image.fromarray(DRAWN).convert("RGBA" if mode == "LA" else mode)
        if mode in {"RGBA", "LA"}:
            opacity = np.full(SHAPE, 255, np.uint8)
            opacity[:30], opacity[-20:] = 0, 120
            image = image.convert(mode)
            image.putalpha(Image.fromarray(opacity))
        original = loaded(image, "TIFF" if mode == "CMYK" else "PNG")
        clean = (
            CLEAN if mode not in {"L", "LA"} else np.array(Image.fromarray(CLEAN).convert("L").convert("RGB"))
        )
        composition = composed(original, editors(clean))
        assert composition.report.reason == ""
        data, kind = write(original, composition.filled.channels, "png")
        written = Image.open(io.BytesIO(data))
        outside = ~composition.report.hole
        assert (written.mode, written.size) == (mode, image.size)
        assert kind == ("tiff" if mode == "CMYK" else "png")
        assert (np.asarray(written)[outside] == np.asarray(image)[outside]).all()
        filled = np.asarray(written.convert("RGB"))
        assert psnr(filled, clean, ~outside) > (18 if mode == "P" else 24)

    @pytest.mark.parametrize("number", range(1, 9))
    def test_a_turned_file_is_written_as_it_was_turned(self, number):
        """The text lies upright for the comparison; pixels, EXIF and ICC profile are those of the file."""
        turns = {5: 0, 6: 1, 7: 2, 8: 3}
        stored = DRAWN if number < 5 else np.rot90(DRAWN, turns[number])
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = number, "Maker"
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        image = Image.fromarray(np.ascontiguousarray(stored))
        original = loaded(image, exif=exif, icc_profile=profile)
        hole = np.zeros(original.pixels.shape[:2], np.bool_)
        hole[10:20, 30:60] = True
        data, _ = write(original, original.channels, "png")
        written = Image.open(io.BytesIO(data))
        assert (np.asarray(written) == stored).all()
        assert written.info["icc_profile"] == profile
        assert dict(written.getexif()) == dict(exif)
        turned = original.turned_back(hole)
        assert turned.shape == stored.shape[:2]
        upright = (
            Image.fromarray(turned)
            if original.turn is None
            else Image.fromarray(turned).transpose(original.turn)
        )
        assert (np.asarray(upright) == hole).all()

    @pytest.mark.parametrize(
        ("mode", "wanted", "kind"),
        [
            ("RGB", "webp", "webp"),
            ("RGB", "jpeg", "jpeg"),
            ("RGB", "tiff", "tiff"),
            ("RGBA", "jpeg", "png"),
            ("P", "webp", "png"),
            ("L", "webp", "png"),
            ("CMYK", "webp", "tiff"),
            ("CMYK", "jpeg", "jpeg"),
        ],
    )
    def test_a_format_that_cannot_hold_the_mode_is_replaced(self, mode, wanted, kind):
        """PNG takes its place, for CMYK TIFF; all but JPEG keep every pixel."""
        image = Image.fromarray(DRAWN).convert(mode)
        original = loaded(image, "TIFF")
        data, written = write(original, original.channels, wanted)
        assert written == kind
        again = Image.open(io.BytesIO(data))
        assert again.mode == mode
        if kind != "jpeg":
            assert (np.asarray(again) == np.asarray(image)).all()

    def test_a_transparent_colour_stays_transparent(self):
        """A PNG without alpha may name a transparent colour or index; so does the composed file."""
        for image, transparent in (
            (Image.fromarray(DRAWN), (9, 9, 9)),
            (Image.fromarray(DRAWN).quantize(64), 3),
        ):
            original = loaded(image, transparency=transparent)
            data, kind = write(original, original.channels, "webp")
            assert kind == "png"
            assert Image.open(io.BytesIO(data)).info["transparency"] == transparent

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_text_on_nothing_leaves_nothing(self, mode):
        """Text that floats on transparent ground becomes transparent itself."""
        alpha = np.zeros(SHAPE, np.uint8)
        alpha[100:120, 50:90] = 255
        hole = grow(alpha > 0, 3)
        own = np.dstack([np.full((*SHAPE, 3 if mode == "RGBA" else 1), 200, np.uint8), alpha])
        palette = None
        if mode == "P":
            own = np.where(alpha > 0, 1, 2).astype(np.uint8)[..., None]
            palette = np.array([[255, 255, 255, 255], [200, 0, 0, 255], [0, 0, 0, 0]], np.uint8)
        filled = to_own_channels(np.full((*SHAPE, 3), 255, np.float32), own, hole, mode, palette)
        opacity = palette[filled[..., 0], 3] if palette is not None else filled[..., -1]
        assert not opacity[hole].any()

    def test_a_logo_cut_out_of_its_ground_is_compared_as_on_white(self):
        """Hardly anything is opaque but the text; without it nothing is left to see."""
        white = np.full((*SHAPE, 3), 255, np.uint8)
        drawn = with_text(white, colour=(190, 30, 60))
        image = Image.fromarray(drawn)
        image.putalpha(Image.fromarray((255 - drawn.min(2)).astype(np.uint8)))
        composition = composed(loaded(image), editors(white, np.eye(3)))
        assert composition.report.reason == ""
        assert composition.filled.channels[..., 3].max() < 8

    def test_cmyk_takes_the_black_of_its_surroundings(self):
        """A grey fill on ground that is printed with black ink alone gets black ink alone."""
        own = np.zeros((*SHAPE, 4), np.uint8)
        own[..., 3] = 120
        hole = np.zeros(SHAPE, np.bool_)
        hole[50:80, 50:80] = True
        own[hole] = (250, 240, 255, 0)
        filled = to_own_channels(np.full((*SHAPE, 3), 135, np.float32), own, hole, "CMYK", None)
        assert np.abs(filled[hole].astype(int) - (0, 0, 0, 120)).max() <= 1


class TestAlignment:
    def test_scale_shift_and_turn_are_found_exactly(self):
        """The error of the alignment is below a quarter of a pixel everywhere."""
        original, result = lab(CLEAN)[..., 0] * 2.55, lab(editors(CLEAN))[..., 0] * 2.55
        found = align(original, result, np.ones(SHAPE, np.bool_))
        corners = np.array([[10, 10, 1], [246, 10, 1], [10, 182, 1], [246, 182, 1]]).T
        assert np.abs(found.matrix @ corners - MOVED @ corners).max() < 0.25
        assert residual_shift(original, warp(result, found.matrix, SHAPE), np.ones(SHAPE, np.bool_)) < 0.25

    def test_a_repeating_texture_is_matched_at_the_same_place(self):
        """Neighbouring tiles look the same: the alignment stays at the near one."""
        tile = blobs((48, 64), seed=5)
        texture = np.tile(tile, (4, 4, 1))
        moved = cv2.warpPerspective(texture, np.array([[1, 0, 2.5], [0, 1, -1.5], [0, 0, 1]]), SHAPE[::-1])
        found = align(lab(texture)[..., 0] * 2.55, lab(moved)[..., 0] * 2.55, np.ones(SHAPE, np.bool_))
        assert np.abs(found.matrix[:2, 2] - (2.5, -1.5)).max() < 0.5

    def test_another_image_does_not_match(self):
        """The correlation of unrelated images is far below the limit."""
        found = align(lab(CLEAN)[..., 0], lab(blobs(seed=8))[..., 0], np.ones(SHAPE, np.bool_))
        assert found.match < 0.5


class TestColours:
    def test_gain_and_offset_are_undone(self):
        """A global tint is gone after matching."""
        original, tinted = lab(CLEAN), lab(CLEAN) * np.float32([0.95, 1.06, 0.93]) + np.float32([2, -1.5, 2])
        matched = fit_tone(tinted, original, np.ones(SHAPE, np.bool_)).apply(tinted)
        assert np.abs(matched - original).mean() < 0.1

    def test_a_rare_saturated_colour_keeps_its_hue(self):
        """A blue button on a white page is as blue as before, though the page outnumbers it."""
        page = np.full((*SHAPE, 3), 250, np.uint8)
        page[40:80, 40:120] = (30, 60, 230)
        original, tinted = lab(page), lab(page)
        tinted = tinted * np.float32([0.95, 0.93, 1.07]) + np.float32([1.5, 1.0, -2.0])
        matched = fit_tone(tinted, original, np.ones(SHAPE, np.bool_)).apply(tinted)
        assert np.abs(matched - original)[50:70, 50:110].max() < 3

    def test_changed_areas_do_not_count(self):
        """A tenth of the image in other colours hardly moves the fit."""
        edited = CLEAN.copy()
        edited[:24] = (255, 0, 255)
        original, result = lab(CLEAN), lab(edited)
        matched = fit_tone(result, original, np.ones(SHAPE, np.bool_)).apply(result)
        assert np.abs(matched - original)[30:].mean() < 0.7

    def test_colours_come_back_unrounded(self):
        """The way to CIELAB and back changes nothing visible."""
        assert np.abs(to_rgb(lab(CLEAN)) - CLEAN).max() < 0.8


class TestSharpness:
    FINE = lab(np.clip(CLEAN + np.random.default_rng(7).normal(0, 12, CLEAN.shape), 0, 255).astype(np.uint8))[
        ..., 0
    ]
    EVERYWHERE = np.ones(SHAPE, np.bool_)

    def test_a_soft_result_becomes_as_sharp_as_the_original(self):
        """The filter is measured where nothing changed, and helps elsewhere as well."""
        soft = gaussian(self.FINE, 0.5)
        known = self.EVERYWHERE.copy()
        known[40:90, 60:200] = False
        kernel = fit_sharpening(soft, self.FINE, known)
        error = [np.abs(each - self.FINE)[~known].mean() for each in (soft, sharpened(soft, kernel))]
        assert error[1] < 0.5 * error[0]
        assert kernel.sum() == pytest.approx(1, abs=1e-4)

    def test_changed_places_do_not_count(self):
        """A hallucinated patch hardly moves the filter."""
        soft = gaussian(self.FINE, 0.5)
        edited = soft.copy()
        edited[20:40, 20:60] = 30
        kernels = [fit_sharpening(each, self.FINE, self.EVERYWHERE) for each in (soft, edited)]
        assert np.abs(kernels[0] - kernels[1]).max() < 0.3

    def test_a_result_that_is_as_sharp_stays_as_it_is(self):
        """So does one that is noisier, and one with too little to measure."""
        noisy = self.FINE + np.random.default_rng(8).normal(0, 4, SHAPE).astype(np.float32)
        assert fit_sharpening(self.FINE, self.FINE, self.EVERYWHERE) is None
        assert fit_sharpening(noisy, self.FINE, self.EVERYWHERE) is None
        assert fit_sharpening(gaussian(self.FINE, 0.5), self.FINE, np.zeros(SHAPE, np.bool_)) is None


class TestChanges:
    def test_blur_sharpening_and_a_shift_count_for_little(self):
        """They make less than a quarter of the difference of removed text."""
        original = lab(DRAWN)
        text = np.abs(DRAWN.astype(int) - CLEAN).max(2) > 60
        blurred = lab(cv2.GaussianBlur(DRAWN, (0, 0), 0.9))
        shifted = lab(np.roll(DRAWN, 1, 1))
        removed = difference(original, lab(CLEAN))[text].mean()
        assert max(difference(original, blurred).mean(), difference(original, shifted).mean()) < removed / 4

    def test_fat_letters_are_replaced_as_a_whole(self):
        """No bars are left inside wide strokes: the usual difference is not taken from the text itself."""
        clean = np.full((*SHAPE, 3), 120, np.uint8)
        drawn = clean.copy()
        drawn[60:150, 40:110] = drawn[60:150, 150:220] = (205, 40, 60)
        zone = grow((drawn != clean).any(2), 12)
        changed, _ = find_changed(difference(lab(drawn), lab(clean)), zone, 100.0, np.ones(SHAPE, np.bool_))
        assert changed[(drawn != clean).any(2)].all()

    def test_faint_text_is_replaced_in_its_zone_only(self):
        """White letters on a near-white sky differ by little; outside the zone that counts for nothing."""
        clean = np.full((*SHAPE, 3), 243, np.uint8)
        drawn = clean.copy()
        drawn[100:130, 80:90] = drawn[20:50, 230:240] = 255
        zone = np.zeros(SHAPE, np.bool_)
        zone[90:140, 70:240] = True
        changed, _ = find_changed(difference(lab(drawn), lab(clean)), zone, 30.0, np.ones(SHAPE, np.bool_))
        assert changed[102:128, 81:89].all()
        assert not changed[:60, 215:].any()

    def test_what_touches_the_text_belongs_to_it(self):
        """A box around text is replaced with it, up to its far end."""
        drawn = CLEAN.copy()
        drawn[72:120, 30:240] = (240, 240, 240)
        changed, _ = find_changed(
            difference(lab(drawn), lab(CLEAN)), region_mask(TEXT, 6), 40.0, np.ones(SHAPE, np.bool_)
        )
        assert changed[74:118, 32:238].mean() > 0.98

    def test_a_change_of_the_whole_image_is_not_text(self):
        """Changes far from the text that cover more than a fifth of the image are left out."""
        changed, _ = find_changed(
            difference(lab(255 - CLEAN), lab(CLEAN)), region_mask(TEXT, 6), 20.0, np.ones(SHAPE, np.bool_)
        )
        assert not changed[:40].any()

    def test_text_outside_the_results_frame_is_noticed(self):
        """Beyond the frame of a cropped result differences mean nothing; text there is not covered."""
        cropped = np.ascontiguousarray(CLEAN[:, :160])
        scene = make_scene(loaded(Image.fromarray(DRAWN)), cropped)
        regions = LINES.on(scene.shape)
        overlay = overlay_result(scene, regions)
        changes = find_changes(scene, overlay, regions, search=False)
        assert changes.covered < 0.9
        assert (
            judge(PreserveReport(match=1.0, residual_px=0.0), changes, 1.0) is PreserveRefusal.OUTSIDE_FRAME
        )


def region_mask(window, reach):
    """Return the mask of a window, grown."""
    mask = np.zeros(SHAPE, np.bool_)
    mask[window.slices] = True
    return grow(mask, reach)


class TestRefusals:
    @pytest.mark.parametrize(
        ("report", "changes", "agreement", "refusal"),
        [
            ({}, {}, 1.0, None),
            ({"match": 0.86}, {}, 1.0, PreserveRefusal.NOT_ALIGNED),
            ({"residual_px": 2.6}, {}, 1.0, PreserveRefusal.NOT_ALIGNED),
            ({"residual_px": 2.9, "match": 0.99}, {}, 1.0, None),
            ({}, {"changed": 0.36}, 1.0, PreserveRefusal.OTHER_CONTENT),
            ({}, {"covered": 0.97}, 1.0, PreserveRefusal.OUTSIDE_FRAME),
            ({}, {"reaches_end": True}, 1.0, PreserveRefusal.OUTSIDE_FRAME),
            ({}, {"untouched": 0.51}, 1.0, PreserveRefusal.UNTOUCHED),
            ({}, {"hole": np.zeros((4, 4), np.bool_)}, 1.0, PreserveRefusal.UNTOUCHED),
            ({}, {}, 0.74, PreserveRefusal.SURROUNDINGS_DIFFER),
        ],
        ids=lambda value: "" if isinstance(value, float) else str(value)[:30].replace("\n", " "),
    )
    def test_each_limit_refuses(self, report, changes, agreement, refusal):
        """One measure beyond its limit is enough."""
        core = changes.pop("hole", np.ones((4, 4), np.bool_))
        usual = Changes(
            hole=Hole(core=core, feather=2.5, mask=core, height=20.0),
            changed=0.01,
            untouched=0.0,
            covered=1.0,
            reaches_end=False,
        )
        measured = attrs.evolve(PreserveReport(match=0.95, residual_px=0.3), **report)
        assert judge(measured, attrs.evolve(usual, **changes), agreement) is refusal

    def test_other_content_is_refused(self):
        """Another image has nothing to be composed from; figures say how far off it was."""
        composition = composed(loaded(Image.fromarray(DRAWN)), blobs(seed=9))
        assert composition.filled is None
        assert composition.report.refusal is PreserveRefusal.NOT_ALIGNED
        assert composition.report.verdict == "refused"
        assert composition.report.match < 0.87
        assert composition.report.hole is None

    @pytest.mark.parametrize("size", [(1, 1), (31, 400), (4, 4)])
    def test_tiny_images_are_refused(self, size):
        """Images with a side below 32 pixels cannot be compared, whichever of the two it is."""
        tiny, usual = Image.new("RGB", size, (80, 90, 200)), Image.fromarray(DRAWN)
        for original, result in ((tiny, DRAWN), (usual, np.array(tiny))):
            assert composed(loaded(original), result).report.refusal is PreserveRefusal.NO_OVERLAP

    @pytest.mark.parametrize(
        ("data", "refusal"),
        [
            (png(40, 40, 16, 2, (b"\0" + b"\1\2" * 120) * 40), PreserveRefusal.UNSUPPORTED_DEPTH),
            (encoded(Image.new("I;16", (40, 40), 900)), PreserveRefusal.UNSUPPORTED_DEPTH),
            (encoded(Image.new("1", (40, 40))), PreserveRefusal.UNSUPPORTED_MODE),
            (encoded(Image.new("F", (40, 40)), "TIFF"), PreserveRefusal.UNSUPPORTED_MODE),
            (
                encoded(
                    Image.new("L", (40, 40)),
                    "GIF",
                    save_all=True,
                    append_images=[Image.new("L", (40, 40), 255)],
                ),
                PreserveRefusal.SEVERAL_FRAMES,
            ),
        ],
        ids=["16-bit RGB", "16-bit grey", "bilevel", "float", "animated"],
    )
    def test_originals_that_would_lose_something_are_refused(self, data, refusal):
        """16 bits, several frames and rare modes: the vendor's image comes back as it was."""
        assert unsupported(open_image(data)) is refusal
        vendors = encoded(Image.fromarray(CLEAN), "JPEG")
        preserved = preserve(data, vendors)
        assert (preserved.image, preserved.format) == (vendors, "jpeg")
        assert preserved.report.refusal is refusal
        assert preserved.report.reason == refusal.value


class TestHostileFiles:
    GOOD = encoded(Image.fromarray(CLEAN))

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "there are no bytes"),
            (b"<html>no image</html>", "not an image"),
            (GOOD[: len(GOOD) // 2], "truncated or damaged"),
            (png(30_000, 30_000), "too large"),
            (png(8_000, 8_000), "too large"),
        ],
        ids=["empty", "html", "truncated", "30,000 x 30,000", "64 megapixels"],
    )
    def test_both_files_are_checked(self, data, words):
        """Each is refused before it is decoded or compared, and the message says which of the two it is."""
        for files, what in (((data, self.GOOD), "original"), ((self.GOOD, data), "result")):
            with pytest.raises(InvalidInput, match=words) as caught:
                preserve(*files)
            assert f"The {what} image" in str(caught.value)

    def test_a_path_must_exist(self, tmp_path):
        """Its name is in the message."""
        with pytest.raises(InvalidInput, match=r"missing\.png"):
            preserve(tmp_path / "missing.png", self.GOOD)
        with pytest.raises(InvalidInput, match="neither bytes nor a path"):
            preserve(self.GOOD, 7)

    def test_the_format_must_be_known(self):
        """A format that cannot be written is named, with those that can."""
        with pytest.raises(InvalidInput, match="png, webp, tiff, jpeg"):
            preserve(self.GOOD, self.GOOD, format="gif")

    def test_a_missing_package_names_the_extra(self):
        """Without OpenCV the error says what to install, and is still an ImportError."""
        code = (
            "import sys\n"
            "sys.modules['cv2'] = None\n"
            "from flux_async import MissingExtra, preserve\n"
            "try: preserve(b'x', b'y')\n"
            "except MissingExtra as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert "flux-async[verify]" in done.stdout


class TestGrid:
    @pytest.mark.parametrize("channels", [1, 2, 3])
    def test_values_spread_into_the_unknown(self, channels):
        """Any number of channels is kept; known values stay, unknown ones lie between them."""
        values = np.zeros((*SHAPE, channels), np.float32)
        values[:, 160:] = 10
        known = np.ones(SHAPE, np.float32)
        known[100:140, 140:180] = 0
        filled = spread(values * known[..., None], known, smooth=0)
        assert filled.shape == values.shape
        assert np.abs(filled - values)[known > 0].max() < 0.5
        assert -0.5 < filled.min() <= filled.max() < 10.5
        assert spread(values, known, smooth=2).shape == values.shape

    def test_nothing_known_gives_zeros(self):
        """No warning, no infinite value."""
        assert not spread(np.zeros((50, 40, 3), np.float32), np.zeros((50, 40), np.float32), smooth=3).any()

    @pytest.mark.parametrize("radius", [0.3, 2, 4.9, 5, 12.5])
    def test_a_mask_grows_by_a_radius(self, radius):
        """Small radii by a disc, large ones by distance."""
        mask = np.zeros((61, 61), np.bool_)
        mask[30, 30] = True
        reach = grow(mask, radius)[30].sum()
        assert abs((reach - 1) / 2 - radius) < 1

    def test_a_resized_place_is_the_same_place(self):
        """Pixel centres count: the middle stays the middle."""
        middle = size_matrix((10, 20), (30, 50)) @ [9.5, 4.5, 1]
        assert tuple(middle) == (24.5, 14.5, 1)


class TestDetail:
    def test_an_enlarged_fill_gets_the_grain_of_its_surroundings(self):
        """Without it, the hole of a fine-grained image is a soft spot."""
        random = np.random.default_rng(3)
        original = (128 + random.normal(0, 9, (*SHAPE, 3))).astype(np.float32)
        soft = gaussian(original, 4)
        hole = region_mask(TEXT, 0)
        grained = add_grain(soft, original, hole=hole, busy=grow(hole, 3), scale=3.0, cell=24)
        assert (grained[~hole] == soft[~hole]).all()
        assert soft[hole].std() < 2
        assert 6 < grained[hole].std() < 12

    def test_a_large_original_is_filled_at_its_full_size(self):
        """The result has a quarter of the pixels; the fill is placed to the pixel and has grain."""
        shape = (SHAPE[0] * 2, SHAPE[1] * 2)
        large = cv2.resize(CLEAN, shape[::-1], interpolation=cv2.INTER_CUBIC)
        grain = np.random.default_rng(2).normal(0, 6, (*shape, 1))
        clean = np.clip(large + grain, 0, 255).astype(np.uint8)
        drawn = with_text(clean, Window(160, 112, 224, 400))
        composition = composed(loaded(Image.fromarray(drawn)), editors(CLEAN))
        filled, changed = composition.filled.pixels, composition.filled.changed
        assert (filled[~changed] == drawn[~changed]).all()
        assert psnr(filled, clean, changed) > 24
        fine = filled - gaussian(filled.astype(np.float32), 2)
        assert fine[changed].std() > 0.8 * fine[~changed].std()

    def test_a_seam_is_measured_in_grey_levels(self):
        """A hole that is 20 levels brighter has a step of 20; an unchanged one has none."""
        flat, hole = np.full((*SHAPE, 3), 100, np.uint8), region_mask(TEXT, 0)
        bright = flat.copy()
        bright[hole] += 20
        assert border_step(bright, flat, hole) == 20
        assert border_step(flat, flat, hole) == 0
        assert border_step(flat, flat, np.zeros(SHAPE, np.bool_)) == 0


@pytest.fixture(scope="module")
def sale():
    """An original with text, and the same without it."""
    clean = gradient((360, 240), (24, 40, 120), (250, 130, 70))
    clean = np.clip(clean.astype(int) + blobs((240, 360), seed=4) // 6, 0, 255).astype(np.uint8)
    sheet = Sheet.over(clean)
    sheet.write("SUMMER SALE", (40, 120), Style(size=44, weight=900))
    return sheet.pixels, clean


class TestFiles:
    """The whole way, with the text models, on one small image."""

    def test_text_is_gone_and_the_rest_untouched(self, sale, tmp_path):
        """From files to a file: same size, exact outside, nothing left to read."""
        drawn, clean = sale
        original, result = tmp_path / "original.png", tmp_path / "result.jpg"
        Image.fromarray(drawn).save(original)
        Image.fromarray(clean).resize((528, 352)).save(result, quality=93)
        preserved = preserve(original, str(result))
        assert preserved.report.reason == ""
        assert preserved.format == "png"
        assert preserved.report.text_left == 0
        assert pickle.loads(pickle.dumps(preserved)) == preserved
        out, hole = decoded(preserved.image), preserved.report.hole
        assert (out[~hole] == drawn[~hole]).all()
        assert psnr(out, clean, hole) > 30
        (line,) = preserved.report.outlines
        assert len(line) <= 40

    def test_text_that_the_editor_left_is_refused(self, sale):
        """The vendor's image comes back as it was, with the reason."""
        drawn, clean = sale
        half = clean.copy()
        half[:, 180:] = drawn[:, 180:]
        vendors = encoded(Image.fromarray(half), "JPEG", quality=93)
        preserved = preserve(encoded(Image.fromarray(drawn)), vendors)
        assert preserved.image == vendors
        assert preserved.report.refusal in {PreserveRefusal.TEXT_LEFT, PreserveRefusal.UNTOUCHED}

    def test_an_original_without_text_is_refused(self, sale):
        """There is nothing to replace."""
        _, clean = sale
        plain = encoded(Image.fromarray(clean))
        assert preserve(plain, plain).report.refusal is PreserveRefusal.NO_TEXT
