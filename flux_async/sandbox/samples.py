"""Sample images with text, each with the same image without it.

They are drawn at every call, always the same, from files in the wheels of the extra ``demo``. Without
scikit-image only those without a photograph are listed. The licences of photographs and fonts are in
``drawing``; all samples may be shown and passed on freely.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from flux_async.sandbox import drawing as ground
from flux_async.sandbox.drawing import Anchor, Face, Sheet, Style

if TYPE_CHECKING:
    from collections.abc import Callable

    from flux_async.imaging import Pixels


@attrs.frozen(kw_only=True, eq=False)
class Sample:
    """An image with text, the same image without it, and the text."""

    name: str
    title: str
    image: Pixels
    clean: Pixels
    text: str


@attrs.frozen(kw_only=True)
class _Recipe:
    title: str
    background: Callable[[], Pixels]
    lettering: Callable[[Sheet], None]
    photo: str | None = None


def sample_names() -> tuple[str, ...]:
    """Return the names of the samples that can be drawn here."""
    return tuple(
        name for name, recipe in _RECIPES.items() if recipe.photo is None or ground.photo_file(recipe.photo)
    )


def sample_title(name: str) -> str:
    """Return what a sample is called, without drawing it.

    Raises:
        KeyError: no sample has this name.
    """
    return _RECIPES[name].title


def draw_sample(name: str) -> Sample:
    """Draw one sample; about 0.6 megapixels.

    Raises:
        KeyError: no sample has this name.
        FileNotFoundError: its photograph is not installed.
    """
    recipe = _RECIPES[name]
    clean = recipe.background()
    sheet = Sheet.over(clean)
    recipe.lettering(sheet)
    return Sample(name=name, title=recipe.title, image=sheet.pixels, clean=clean, text=" ".join(sheet.texts))


def _market_poster(sheet: Sheet) -> None:
    navy = (40, 40, 60)
    sheet.write("Autumn Market", (56, 150), Style(size=78, weight=700, colour=navy))
    lines = (
        "Apples, honey and old books,\n"
        "bread from the wood oven,\n"
        "live music until the lights\n"
        "go out over the square."
    )
    sheet.write_lines(lines, (60, 250), Style(size=40, colour=(60, 60, 70)))
    sheet.write(
        "Saturday 12 October  10:00 - 18:00", (56, 895), Style(size=36, weight=600, colour=(255, 250, 240))
    )


def _summer_sale(sheet: Sheet) -> None:
    sheet.write("SUMMER SALE", (536, 290), Style(size=116, weight=900), Anchor.MIDDLE)
    sheet.write("up to 50% off everything", (536, 390), Style(size=50, colour=(255, 240, 200)), Anchor.MIDDLE)


def _astronaut_caption(sheet: Sheet) -> None:
    sheet.write("Commander Eileen Collins", (40, 716), Style(size=48, weight=700, shadow=0.5))
    small = Style(size=27, face=Face.AILERON, colour=(235, 235, 235), shadow=0.4)
    sheet.write("first woman to command a Space Shuttle, 1999", (42, 764), small)


def _coffee_title(sheet: Sheet) -> None:
    loud = Style(
        size=62, weight=900, colour=(255, 220, 60), outline=4, outline_colour=(190, 30, 30), shadow=0.45
    )
    sheet.write("COFFEE", (724, 84), loud)
    sheet.write("TIME", (724, 154), loud)
    soft = Style(size=42, face=Face.RUBIK_ITALIC, weight=500, outline=3, outline_colour=(60, 30, 10))
    sheet.write("freshly roasted every day", (984, 652), soft, Anchor.RIGHT)


def _meme(sheet: Sheet) -> None:
    """Write beside the cat, not on its face: no local fill can draw a face."""
    loud = Style(size=42, weight=900, outline=4)
    for row, words in enumerate(["NO KEY?", "NO", "PROBLEM"]):
        sheet.write(words, (836, 440 + 58 * row), loud, Anchor.MIDDLE)


def _magazine(sheet: Sheet) -> None:
    sheet.write("THE CAMERA", (426, 74), Style(size=48, weight=800))
    sheet.write("a quarterly for people who look", (428, 112), Style(size=23, weight=500))
    sheet.write("No. 27", (672, 760), Style(size=30, weight=600))


def _deep_field(sheet: Sheet) -> None:
    sheet.write(
        "DEEP FIELD", (360, 330), Style(size=92, weight=800, colour=(255, 170, 70), turn=24), Anchor.MIDDLE
    )
    sheet.write("ten thousand galaxies", (640, 470), Style(size=42, weight=500, turn=-58), Anchor.MIDDLE)


def _watermark(sheet: Sheet) -> None:
    faint = Style(size=40, weight=600, opacity=0.55, turn=22)
    for row in range(4):
        for column in range(2):
            sheet.write("© SAMPLE PHOTO", (40 + column * 450 + (row % 2) * 140, 200 + row * 160), faint)


def _letter(sheet: Sheet) -> None:
    lines = (
        "Dear reader, this letter was written on old paper with\n"
        "a rather small font, so that a detector has to work.\n"
        "The margins are wide and the lines are many, because\n"
        "a page of prose is the hardest thing to clean by hand.\n"
        "\n"
        "1. Every line must vanish without a trace.\n"
        "2. The grain of the paper must stay as it was.\n"
        "3. No grey shadows may remain between the letters.\n"
        "\n"
        "Yours sincerely,\n"
        "The Sandbox"
    )
    brown = Style(size=22, face=Face.AILERON, colour=(52, 44, 40))
    sheet.write_lines(lines, (80, 150), brown, spacing=1.8)
    sheet.write("page 12", (640, 910), attrs.evolve(brown, size=17), Anchor.RIGHT)


def _chinese_banner(sheet: Sheet) -> None:
    sheet.write("全场五折优惠", (60, 260), Style(size=88, face=Face.MICRO_HEI, colour=(255, 236, 170)))
    sheet.write("新品上市 欢迎选购", (64, 370), Style(size=52, face=Face.MICRO_HEI))
    sheet.write(
        "限时三天", (817, 340), Style(size=64, face=Face.MICRO_HEI, colour=(190, 30, 40)), Anchor.MIDDLE
    )


def _three_scripts(sheet: Sheet) -> None:
    big = Style(size=66, weight=700, colour=(255, 235, 90))
    sheet.write("Скоро старт", (150, 130), big)
    sheet.write("ロケット発射", (150, 225), Style(size=54, face=Face.MICRO_HEI))
    sheet.write("곧 발사합니다", (560, 330), Style(size=48, face=Face.MICRO_HEI))


def _dashboard(sheet: Sheet) -> None:
    sheet.write("Dashboard", (24, 37), Style(size=24, weight=600))
    sheet.write("jane@example.com", (800, 36), Style(size=18, colour=(210, 220, 240)))
    for row, word in enumerate(["Overview", "Customers", "Invoices", "Reports", "Settings"]):
        sheet.write(word, (56, 106 + row * 52), Style(size=19, colour=(70, 80, 100)))
    cards = [("Revenue", "$ 48,210", "Details"), ("Orders", "1,284", "Export"), ("Refunds", "37", "Review")]
    for number, (label, figure, button) in enumerate(cards):
        x = 242 + number * 284
        sheet.write(label, (x, 118), Style(size=19, colour=(120, 130, 150)))
        sheet.write(figure, (x, 175), Style(size=44, weight=600, colour=(30, 40, 60)))
        sheet.write(button, (x + 60, 234), Style(size=18, weight=500), Anchor.MIDDLE)
    sheet.write("Monthly active users", (244, 330), Style(size=21, weight=600, colour=(30, 40, 60)))
    for number, month in enumerate(["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug"]):
        sheet.write(month, (250 + number * 95, 606), Style(size=15, colour=(120, 130, 150)))


def _street_art(sheet: Sheet) -> None:
    spray = Style(size=150, weight=900, colour=(70, 240, 220), outline=6, outline_colour=(20, 40, 90))
    sheet.write_dancing("Street", (130, 330), spray, seed=4)
    sheet.write_dancing("Art 2026", (90, 520), attrs.evolve(spray, size=120, colour=(255, 240, 80)), seed=9)


def _date_stamp(sheet: Sheet) -> None:
    sheet.write_digits("98 12 24 17:45", (600, 640), Style(size=34, colour=(255, 190, 70)))


def _landscape(sheet: Sheet) -> None:
    sheet.write("EXPLORE", (504, 290), Style(size=160, weight=900), Anchor.MIDDLE)
    sheet.write(
        "THE NORTHERN TRAIL", (504, 620), Style(size=54, weight=600, colour=(255, 214, 90)), Anchor.MIDDLE
    )


def _beach_club(sheet: Sheet) -> None:
    sheet.write("Beach Club", (528, 300), Style(size=140, weight=700, colour=(30, 30, 80)), Anchor.MIDDLE)
    sheet.write("members only", (528, 410), Style(size=64, weight=600, colour=(200, 30, 50)), Anchor.MIDDLE)


def _coffee_badge(sheet: Sheet) -> None:
    cream = Style(size=46, weight=600, colour=(255, 235, 190))
    sheet.write_on_circle("GENUINE MOUNTAIN COFFEE", (400, 400), 236, cream, arc=160)
    sheet.write("EST 1987", (400, 472), Style(size=29, weight=600, colour=(30, 90, 80)), Anchor.MIDDLE)


def _stay_wild(sheet: Sheet) -> None:
    fat = Style(size=210, weight=900, colour=(240, 60, 90))
    sheet.write("STAY", (400, 380), fat, Anchor.MIDDLE)
    sheet.write("WILD", (400, 580), fat, Anchor.MIDDLE)


def _picnic_quote(sheet: Sheet) -> None:
    sheet.write_lines(
        "\u201cThe grass is greener\nwhere you water it\u201d",
        (70, 300),
        Style(size=56, weight=600, shadow=0.6),
    )
    sheet.write("www.example.com/garden", (760, 770), Style(size=22, shadow=0.6), Anchor.RIGHT)


def _slide(sheet: Sheet) -> None:
    sheet.write("Results of the third quarter", (70, 100), Style(size=48, weight=600, colour=(20, 60, 110)))
    lines = (
        "• 12 % more orders than last year\n"
        "• Delivery time down to two days\n"
        "• Returns below three percent\n"
        "• Support answers within an hour"
    )
    sheet.write_lines(lines, (74, 210), Style(size=28, colour=(50, 60, 80)), spacing=2.0)
    for number, year in enumerate(range(2021, 2026)):
        sheet.write(str(year), (632 + number * 86, 540), Style(size=19, colour=(90, 100, 120)), Anchor.MIDDLE)
    sheet.write("confidential", (1040, 600), Style(size=15, colour=(130, 140, 160)), Anchor.RIGHT)


def _photo(
    title: str, name: str, size: ground.Size, lettering: Callable[[Sheet], None], **options: Any
) -> _Recipe:
    return _Recipe(
        title=title, background=lambda: ground.photo(name, size, **options), lettering=lettering, photo=name
    )


def _drawn(
    title: str, scene: Callable[[ground.Size], Pixels], size: ground.Size, lettering: Callable[[Sheet], None]
) -> _Recipe:
    return _Recipe(title=title, background=lambda: scene(size), lettering=lettering)


def _astronaut() -> Pixels:
    """Draw the astronaut with a dark bar along the foot: the bar is part of the image."""
    pixels = ground.photo("astronaut.png", (800, 800))
    pixels[664:784] = (pixels[664:784] * 0.3).astype(np.uint8)
    return pixels


def _valley(size: ground.Size) -> Pixels:
    return np.ascontiguousarray(ground.landscape(size)[:, ::-1, [2, 1, 0]])


def _sunset(size: ground.Size) -> Pixels:
    return ground.gradient(size, (24, 40, 120), (250, 130, 70))


_RECIPES = {
    "market-poster": _drawn("Flat poster", ground.poster, (768, 960), _market_poster),
    "summer-sale": _drawn("Headline on a gradient", _sunset, (1072, 624), _summer_sale),
    "astronaut-caption": _Recipe(
        title="Caption on a bar over a photograph",
        background=_astronaut,
        lettering=_astronaut_caption,
        photo="astronaut.png",
    ),
    "coffee-title": _photo("Outlined title with a shadow", "coffee.png", (1008, 672), _coffee_title),
    "cat-meme": _photo("Meme", "chelsea.png", (960, 640), _meme),
    "magazine": _photo("Magazine cover, black and white", "camera.png", (800, 800), _magazine),
    "deep-field": _photo("Turned text on stars", "hubble_deep_field.jpg", (864, 752), _deep_field, grain=0.0),
    "watermark": _drawn("Tiled, see-through watermark", _valley, (1008, 720), _watermark),
    "letter": _drawn("Small print on old paper", ground.paper, (720, 960), _letter),
    "chinese-banner": _drawn("Chinese shop banner", ground.shop_banner, (1072, 624), _chinese_banner),
    "three-scripts": _photo(
        "Cyrillic, Japanese and Korean on a photograph", "rocket.jpg", (1008, 672), _three_scripts
    ),
    "dashboard": _drawn("Screenshot of a web application", ground.dashboard, (1072, 640), _dashboard),
    "street-art": _photo(
        "Dancing letters on brick", "brick.png", (800, 800), _street_art, tint=(225, 140, 110), grain=3.0
    ),
    "beach-club": _drawn("Name on stripes", ground.stripes, (1056, 624), _beach_club),
    "coffee-badge": _drawn("Name around a badge", ground.badge, (800, 800), _coffee_badge),
    "stay-wild": _photo(
        "Fat letters on gravel", "gravel.png", (800, 800), _stay_wild, tint=(255, 245, 230), grain=0.0
    ),
    "garden-quote": _photo(
        "Quotation on grass", "grass.png", (800, 800), _picnic_quote, tint=(150, 205, 110), grain=0.0
    ),
    "slide": _drawn("Presentation slide", ground.slide, (1072, 624), _slide),
    # The last two repeat a background; the demo, which shows the first fifteen, leaves them out.
    "date-stamp": _photo(
        "Date stamp of a camera", "coffee.png", (1008, 672), _date_stamp, crop=(0.0, 0.1, 0.9, 1.0)
    ),
    "northern-trail": _drawn("Headline on a landscape", ground.landscape, (1008, 720), _landscape),
}
