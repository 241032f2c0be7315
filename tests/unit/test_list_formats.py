"""Lists as other programs write them: accepted and refused forms, and the messages."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from pathlib import Path

import click
import pytest

from flux_async.cli.input_rows import InputRow, ListOptions
from flux_async.cli.inputs import gather_inputs

SAMPLES = Path(__file__).parent.parent / "samples" / "lists"
A, B, C, D = (f"http://pics.example.com/{name}.jpg" for name in "abcd")


def read(path: Path, notes: list[str] | None = None, **options: str) -> list[InputRow]:
    notes = [] if notes is None else notes
    return list(gather_inputs([], [str(path)], options=ListOptions(**options), note=notes.append))


def rows(tmp_path: Path, content: str | bytes, name: str = "list.csv", **options: str) -> list[InputRow]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(path, **options)


def images(found: list[InputRow]) -> list[str | None]:
    """What is read; of a row that is refused, None."""
    return [None if row.refusal else row.image for row in found]


READ = {
    "excel_semicolon_bom.csv": [A, B],
    "excel_sep_line.csv": [A, B],
    "excel_unicode_text_utf16.txt": [A, B],
    "excel_ansi_cp1252_key.csv": [A, B],
    "gsheets_quoted_newline.csv": [A, B],
    "unbalanced_quote.csv": [None],
    "semicolon_in_url.csv": ["http://pics.example.com/a09c;00000115.jpg", "http://pics.example.com/b;1.jpg"],
    "trailing_columns.csv": [A, B],
    "shopify_export.csv": [A, B],
    "woocommerce.csv": [None],
    "hash_header.csv": [A, B],
    "no_ext_array": [A, B],
    "pretty_objects.jsonl": [A, B],
    "inline_comment.txt": [A, B, C],
    "markdown.txt": [A, B, C, D],
    "nbsp_zwsp.txt": [A, B, C, D],
    "powershell51_redirect.txt": [A, B],
}


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.iterdir()))
def test_lists_of_well_known_programs_are_read(name: str) -> None:
    """Every address whole and none missing, or a row that is refused."""
    assert images(read(SAMPLES / name)) == READ[name]


def test_messages_about_refused_and_guessed_lists() -> None:
    """The line of the open quote, the option that splits, the encoding that was assumed."""
    (quote,) = read(SAMPLES / "unbalanced_quote.csv")
    assert quote.line == 2
    assert "nothing from line 3 on was read" in (quote.refusal or "")
    (several,) = read(SAMPLES / "woocommerce.csv")
    assert '2 addresses: --split ","' in (several.refusal or "")
    assert images(read(SAMPLES / "woocommerce.csv", split=",")) == [A, B]
    notes: list[str] = []
    keys = [row.key for row in read(SAMPLES / "excel_ansi_cp1252_key.csv", notes)]
    assert keys == ["Men\u00fc-1", "Men\u00fc-2"]
    assert ["Windows-1252" in note for note in notes] == [True]


# --- CSV --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        (f'url,title\n{A},ok\n{B},"open\n{C},ok\n{D},ok\n', 3, [A, None]),
        (f'url,title\n{A},"6 inch\n{B},"ok"\n{C},"ok"\n', 2, [None]),
        (f'url,title\n{A},"6 inch\n{B},7 inch"\n{C},ok\n', 2, [None, C]),
        (f'url,title\n{A},"two\nlines"\n{B},"open\n', 4, [A, None]),
        (f'url,title\n{A},"6" tall"\n{B},ok\n', 2, [None, B]),
        (f'url\n"{A}\n{B}\n{C}\n', 2, [None]),
        (f'url,title\n{A},"open at the end', 2, [None]),
    ],
)
def test_a_quote_that_is_not_closed_is_refused_with_its_line(
    tmp_path: Path, content: str, line: int, found: list[str | None]
) -> None:
    """No row vanishes silently into the cell of another."""
    given = rows(tmp_path, content)
    assert images(given) == found
    assert [row.line for row in given if row.refusal] == [line]


def test_an_open_quote_of_a_long_list_ends_its_reading_soon(tmp_path: Path) -> None:
    """It does not take the rest of the file into memory."""
    path = tmp_path / "long.csv"
    path.write_text(f'url,title\n{A},"open\n' + f"{B},ok\n" * 100_000)
    tracemalloc.start()
    try:
        (row,) = read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert row.line == 2
    assert peak < 2_000_000


def test_a_quote_inside_a_cell_is_a_letter(tmp_path: Path) -> None:
    """Inches need no quotation marks around them."""
    assert images(rows(tmp_path, f'title,url\n6" tall,{A}\n"say ""hi""",{B}\n')) == [A, B]


@pytest.mark.parametrize(
    "row",
    [
        "https://h.com/upload/w_200,h_300/a.jpg",
        "https://h.com/upload/w_200,h_300/a.jpg,",
        "https://h.com/a,b.jpg,key,surplus",
        "https://h.com/upload/w_200,h_300,c_fill/a.jpg",
    ],
)
@pytest.mark.parametrize("header", ["url", "url,key", "url,key,note"])
def test_an_address_that_was_cut_at_a_comma_is_refused(tmp_path: Path, header: str, row: str) -> None:
    """A row with more cells than the header is refused, and one whose address goes on in the next cell."""
    (given,) = rows(tmp_path, f"{header}\n{row}\n")
    if row.startswith("https://h.com/a,b") and header == "url,key,note":
        return  # nothing distinguishes this one from a row of three cells and one more
    assert "quotation marks" in (given.refusal or "")


def test_a_quoted_address_keeps_its_commas(tmp_path: Path) -> None:
    """This is what the refusal advises."""
    url = "https://h.com/upload/w_200,h_300/a.jpg"
    assert images(rows(tmp_path, f'url,key\n"{url}",one\n')) == [url]
    assert images(rows(tmp_path, f"url;key\n{url};one\n")) == [url]


@pytest.mark.parametrize("between", [",", ", ", ";", " ; ", "|", " | ", " ", "\n", ",\n"])
def test_several_addresses_in_one_cell_are_refused_until_split_is_given(tmp_path: Path, between: str) -> None:
    """The refusal names the option with the separator that is there; with it each is a job of its own."""
    content = f'key,url\nk,"{A}{between}{B}"\n'
    (given,) = rows(tmp_path, content)
    separator = between.strip()[:1] or " "
    assert f'--split "{separator}"' in (given.refusal or "")
    both = rows(tmp_path, content, split=separator)
    assert images(both) == [A, B]
    assert [row.key for row in both] == ["k-1", "k-2"]


def test_splitting_leaves_single_addresses_whole(tmp_path: Path) -> None:
    """A separator inside an address is a part of it, and one image keeps its key."""
    url = "https://h.com/w_200,h_300/a.jpg"
    found = rows(tmp_path, f'url,key\n"{url}",one\n"{url}, {A},",two\n', split=",")
    assert [(row.image, row.key) for row in found] == [(url, "one"), (url, "two-1"), (A, "two-2")]
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").touch()
    assert images(rows(tmp_path, "file\na.png|b.png\n", split="|")) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "url",
    [
        "https://proxy.example.com/?url=http://h.com/a.jpg",
        "https://web.archive.org/web/2020/http://h.com/a.jpg",
        "https://h.com/a;b;c.jpg",
        "https://h.com/a|b.jpg",
        "https://h.com/a.jpg?x=1;y=2",
    ],
)
def test_addresses_inside_addresses_pass(tmp_path: Path, url: str) -> None:
    """Proxies and archives hold a second one; semicolons and bars are letters of an address."""
    assert images(rows(tmp_path, f"url\n{url}\n")) == [url]
    assert images(rows(tmp_path, f"{url}\n", "list.txt")) == [url]


@pytest.mark.parametrize(
    "name",
    [
        *("url", "URL", "Image", "image_url", "Image URL", "image-url", "src", "Image Src", "Link", "Images"),
        *("img", "Photo", "picture_url", "ImageURL", "image link", "file", " url ", '"url"', "\u00a0URL"),
    ],
)
def test_the_column_of_images_is_found_by_its_usual_names(tmp_path: Path, name: str) -> None:
    """In any case, with blanks, hyphens or underscores."""
    assert images(rows(tmp_path, f"id,{name},key\n1,{A},k\n")) == [A]


def test_of_several_columns_the_one_that_is_taken_is_named(tmp_path: Path) -> None:
    """A shop's feed has the page of the product in link and its image in image_link."""
    notes: list[str] = []
    path = tmp_path / "feed.csv"
    path.write_text(f"id,link,image link\n1,http://shop.example.com/p/1,{A}\n")
    assert images(read(path, notes)) == [A]
    assert "column image link, not from link (--column chooses)" in notes[0]
    assert images(read(path, notes, column="Link")) == ["http://shop.example.com/p/1"]
    assert len(notes) == 1


def test_a_list_without_a_known_column_names_those_there_are(tmp_path: Path) -> None:
    """The message holds the columns and the option; the option finds a column by any spelling."""
    content = f"Artikel,Bild 1,Text\n1,{A},x\n"
    with pytest.raises(click.UsageError, match=r"Artikel, Bild 1, Text\. .*--column NAME.*Nothing was sent"):
        rows(tmp_path, content)
    assert images(rows(tmp_path, content, column="bild_1")) == [A]
    with pytest.raises(click.UsageError, match=r"no column 'Foto'\. Its columns: Artikel, Bild 1, Text"):
        rows(tmp_path, content, column="Foto")


def test_a_list_without_a_header(tmp_path: Path) -> None:
    """One column of addresses is read; with more, the list is refused."""
    assert images(rows(tmp_path, f"{A}\n{B}\n")) == [A, B]
    with pytest.raises(click.UsageError, match="is no header: it holds an address"):
        rows(tmp_path, f"1,{A}\n2,{B}\n")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (f"# a comment\n#, too\nurl,key\n{A},1\n", [A]),
        (f"#,url\n1,{A}\n#2,{B}\n", [A, B]),
        (f"#url,key\n{A},1\n", [A]),
        (f"# of shop,Image URL\n1,{A}\n", [A]),
        (f"url,key\n# later\n{A},1\n#{B},2\n", [A]),
        (f"\n\nurl\n{A}\n", [A]),
        (f'"sep=;"\r\nid;url\r\n1;{A}\r\n', [A]),
        (f"sep=\t\nid\turl\n1\t{A}\n", [A]),
        (f"id|url\n1|{A}\n", [A]),
        (f'"url","a note; with; semicolons"\n{A},x\n', [A]),
        (f'id,"two\nlines",url\n1,x,{A}\n', [A]),
        (f"url\r{A}\r{B}\r", [A, B]),
    ],
)
def test_headers_separators_and_comments(tmp_path: Path, content: str, found: list[str]) -> None:
    """A hash begins a comment only where the line can be neither a header nor a row."""
    assert images(rows(tmp_path, content)) == found


def test_a_header_with_an_open_quote_is_a_usage_error(tmp_path: Path) -> None:
    """Nothing can be read behind it."""
    with pytest.raises(click.UsageError, match="header of .* is not CSV"):
        rows(tmp_path, f'url,"key\n{A},1\n')


# --- encodings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
@pytest.mark.parametrize("name", ["list.csv", "list.txt", "list.json", "list"])
def test_any_usual_encoding_is_read(tmp_path: Path, encoding: str, name: str) -> None:
    """With and without a byte order mark; text that is none of the Unicode kinds gets a note."""
    if name == "list.json":
        content = json.dumps([{"url": A, "key": "\u00e4"}], ensure_ascii=False)
    else:
        content = f"key\turl\r\n\u00e4\t{A}\r\n"
    path, notes = tmp_path / name, []
    path.write_bytes(content.encode(encoding))
    (row,) = read(path, notes)
    assert (row.image, row.key) == (A, "\u00e4")
    assert bool(notes) == (encoding == "cp1252")


@pytest.mark.parametrize("content", [b"http://h.com/\x81\x8d.jpg\n", b"\xff\xfeh\0t\0t"])
def test_what_is_text_in_no_encoding_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    """Cut UTF-16, bytes that Windows-1252 does not have."""
    with pytest.raises(click.UsageError, match=r"is not text in UTF-8, UTF-16 or Windows-1252\. Save it as"):
        rows(tmp_path, content, "list.txt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(60), "an Excel workbook or another zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(60), "an Excel workbook or another Office file"),
        (gzip.compress(b"url\nhttp://h.com/a.jpg\n", mtime=0), "compressed with gzip"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "is an image, not a list"),
        (b"\xff\xd8\xff\xe0" + bytes(60), "is an image, not a list"),
        (b"\0\0\0\x18ftypheic" + bytes(60), "is an image, not a list"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"SQLite format 3\0" + bytes(60), "a database"),
        (b"\x7fELF\x02\x01\x01\0\xff\xfe" + bytes(60), "is not text"),
    ],
    ids=["zip", "ole", "gzip", "png", "jpeg", "heic", "pdf", "html", "sqlite", "elf"],
)
@pytest.mark.parametrize("name", ["list.csv", "list.txt", "list.json", "list.xlsx", "list"])
def test_a_file_that_is_no_list_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, words: str, name: str
) -> None:
    """Whatever its suffix is."""
    with pytest.raises(click.UsageError, match=words) as refused:
        rows(tmp_path, content, name)
    assert "Nothing was sent" in refused.value.message


# --- text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (f"- {A}", A),
        (f"  * {A}  ", A),
        (f"12) {A}", A),
        (f"> {A}", A),
        (f"- [the shirt]({A})", A),
        (f'![the shirt]({A} "front")', A),
        ("[x](http://h.com/a_(film).jpg)", "http://h.com/a_(film).jpg"),
        (f"<{A}>", A),
        (f'"{A}",', A),
        (f"'{A}'", A),
        (f"`{A}`", A),
        (f"{A} # first", A),
        (f"{A} #first", A),
        (f"{A}\tcaption of two words", A),
        (f"\ufeff\u200b{A}\u00a0\u200b", A),
        ("http://h.com/photo #1.jpg", "http://h.com/photo #1.jpg"),
        ("http://h.com/my photo.jpg", "http://h.com/my photo.jpg"),
        ("http://h.com/a#part", "http://h.com/a#part"),
        (f"see {A}", f"see {A}"),
    ],
)
def test_an_address_is_taken_out_of_what_stands_around_it(tmp_path: Path, line: str, found: str) -> None:
    """Where that is certain; an address with a blank in it is left whole, to be refused, and never cut."""
    assert images(rows(tmp_path, f"# list\n{line}\n", "list.txt")) == [found]


@pytest.mark.parametrize("between", [" ", ",", "; ", "|", "\t", " # or "])
def test_several_addresses_in_a_line_are_refused(tmp_path: Path, between: str) -> None:
    """Which of them is meant is not known."""
    (row,) = rows(tmp_path, f"{A}{between}{B}\n", "list.txt")
    if between == " # or ":
        assert row.image == f"{A}{between}{B}"  # it holds blanks, and is refused for them
    else:
        assert "2 addresses: --split" in (row.refusal or "")


# --- JSON -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (f'["{A}","{B}"]', [A, B]),
        (f'[\n  {{"url": "{A}"}},\n  "{B}"\n]\n', [A, B]),
        (f'{{\n "Image URL": "{A}",\n "more": {{"x": [1, 2]}}\n}}\n{{"url": "{B}"}}', [A, B]),
        (f'{{"url": "{A}"}}{{"url": "{B}"}}', [A, B]),
        (f'{{"url": "{A}"}},\n{{"url": "{B}"}},\n', [A, B]),
        (f'\ufeff"{A}"\r\n\r\n"{B}"\r\n', [A, B]),
        (f'["{A}"]\n["{B}"]\n', [A, B]),
        (f'["{A}", 7, null, ["{B}"], "{C}"]', [A, None, None, None, C]),
        (f'"{A}"\n{{"url": "{B}"\n"{C}"\n', [A, None, C]),
        (f'{{"url": "{A}"\n{{"url": "{B}"}}\n', [None, B]),
        (f'{{"url": "{A}"}}\nnonsense\n\n{{"url": {{}}}}\n"{B}', [A, None, None, None]),
        (f'[\n"{A}",\n"{B}"\n', [A, B, None]),
        (f'["{A}",\n{{"url": oops}},\n"{B}"]', [A, None]),
        (f'{{\n"url": "{A}"\n}}\n{{\n"url": oops\n}}\n{{"url": "{B}"}}', [A, None]),
        ("[]", []),
    ],
)
@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_json_is_read_in_any_layout(tmp_path: Path, content: str, found: list[str | None], name: str) -> None:
    """Arrays, one value a line, pretty-printed; behind damage that has no end nothing is read."""
    if not found:
        with pytest.raises(click.UsageError, match="holds no image"):
            rows(tmp_path, content, name)
        return
    assert images(rows(tmp_path, content, name)) == found


def test_rows_of_json_are_named_by_the_line_they_begin_on(tmp_path: Path) -> None:
    """Also where a value is spread over several lines."""
    found = rows(tmp_path, f'[\n{{\n"url": "{A}"\n}},\n\n{{"url": "{B}"}}]', "list.json")
    assert [row.line for row in found] == [2, 6]


@pytest.mark.parametrize("layout", ["array in one line", "one a line", "pretty"])
def test_json_of_any_size_is_read_piece_by_piece(tmp_path: Path, layout: str) -> None:
    """Whatever the pieces cut through; the memory for it does not grow with it."""
    count = 20_000
    values = [{"url": f"http://h.com/{n}/{'x' * 60}.jpg", "key": f"\u00e9{n}"} for n in range(count)]
    match layout:
        case "array in one line":
            text = json.dumps(values)
        case "one a line":
            text = "\n".join(map(json.dumps, values))
        case _:
            text = json.dumps(values, indent=1)
    (tmp_path / "list.json").write_text(text)
    assert len(text) > 2_000_000
    del text
    tracemalloc.start()
    try:
        for number, row in enumerate(gather_inputs([], [str(tmp_path / "list.json")])):
            assert (row.image, row.key) == (values[number]["url"], values[number]["key"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert number == count - 1
    assert peak < 1_000_000


# --- the whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [("list.csv", "url,key\n"), ("list.csv", ""), ("list.txt", "# only\n\n"), ("list.json", " \n")],
)
def test_an_empty_list_is_reported(tmp_path: Path, name: str, content: str) -> None:
    """Alone it is an error; beside others it is a note."""
    with pytest.raises(click.UsageError, match=rf"{name} holds no image: it is empty, or has only a header"):
        rows(tmp_path, content, name)
    notes: list[str] = []
    assert images(list(gather_inputs([A], [str(tmp_path / name)], note=notes.append))) == [A]
    assert "holds no image" in notes[0]


def test_a_line_that_no_list_has_is_refused(tmp_path: Path) -> None:
    """It is not taken into memory, whatever the format."""
    for name in ("list.txt", "list.csv"):
        found = rows(tmp_path, f"url\n{A}\n" + "x" * 3_000_000 + f"\n{B}\n", name)
        assert images(found) == [A, None]
        assert (found[1].line, "nothing from here on was read" in (found[1].refusal or "")) == (3, True)


def test_standard_input_is_read_like_a_file() -> None:
    """Its beginning decides about its format."""
    for text in (f"url\n{A}\n", f"{A}\n", f'["{A}"]', f'{{\n"url": "{A}"}}', f"Id;Image Src\n1;{A}\n"):
        assert images(list(gather_inputs(["-"], [], io.StringIO(text)))) == [A]


def test_a_list_given_as_an_image_hints_at_from(tmp_path: Path) -> None:
    """Before anything is sent."""
    for name in ("my list.csv", "list.txt", "list.jsonl", "list.xlsx"):
        (tmp_path / name).touch()
        with pytest.raises(click.UsageError, match=rf"--from '?.*{name}'?\. Nothing was sent"):
            gather_inputs([str(tmp_path / name)], [])


def test_an_address_without_its_scheme_is_hinted_at(tmp_path: Path) -> None:
    """As an argument it ends the command, in a list it is refused alone."""
    for typed, meant in (
        ("example.com/a.jpg", "https://example.com/a.jpg"),
        ("//h.com/a", "https://h.com/a"),
    ):
        with pytest.raises(click.UsageError, match=f"is {meant} meant"):
            gather_inputs([typed], [])
    given = rows(tmp_path, "url\nexample.com/a.jpg\n//h.com/a.jpg\n")
    assert ["is https://" in (row.refusal or "") for row in given] == [True, True]


def test_a_folder_reports_files_that_it_leaves_out(tmp_path: Path) -> None:
    """Unsupported formats by name, other files and folders by number."""
    for name in (
        "a.png",
        "b.JPG",
        "c.heic",
        "d.HEIC",
        "e.tif",
        "f.gif",
        "notes.txt",
        "list.csv",
        ".hidden.tif",
    ):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    notes: list[str] = []
    assert len(list(gather_inputs([str(tmp_path)], [], note=notes.append))) == 2
    (note,) = notes
    assert "left out 2 HEIC, 1 GIF, 1 TIFF, 2 other files, 1 folder." in note
    for name in ("a.png", "b.JPG"):
        (tmp_path / name).unlink()
    with pytest.raises(click.UsageError, match="only 2 HEIC, 1 GIF, 1 TIFF"):
        gather_inputs([str(tmp_path)], [])


# --- one name twice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (f"url,url\n{A},{B}\n", "url"),
        (f"URL,x,url\n{A},1,{B}\n", "url"),
        (f"url,key,key\n{A},1,2\n", "key"),
        (f"prompt,url,prompt\none,{A},two\n", "prompt"),
    ],
)
def test_a_row_with_different_values_under_one_name_is_refused(
    tmp_path: Path, content: str, name: str
) -> None:
    """The message names both columns; --column chooses one."""
    for options in ({}, {"column": "url"}):
        (row,) = rows(tmp_path, content, **options)
        assert row.refusal == (
            f"it has 2 different values under {name!r}: rename all of these columns but one"
        )


@pytest.mark.parametrize(
    "content", [f"url,url\n{A},{A}\n", f"url,url\n{A},\n", f"url,url\n,{A}\n", f"url,x,x\n{A},1,2\n"]
)
def test_columns_of_one_name_with_equal_values_are_accepted(tmp_path: Path, content: str) -> None:
    """Equal cells, empty ones, and columns without a meaning."""
    assert images(rows(tmp_path, content)) == [A]


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (f'{{"url": "{A}", "url": "{B}"}}', None),
        (f'{{"url": "{A}", "URL": "{B}"}}', None),
        (f'{{"url": "{A}", "key": "a", "key": "b"}}', None),
        (f'{{"url": "{A}", "url": "{A}", "x": 1, "x": 2}}', A),
        (f'{{"url": "{A}", "url": null}}', A),
    ],
)
def test_a_json_object_with_one_name_twice_is_read_as_a_row_of_csv(
    tmp_path: Path, content: str, read: str | None
) -> None:
    """JSON readers take the last one in silence."""
    assert images(rows(tmp_path, content, "list.jsonl")) == [read]


def test_rows_of_one_line_have_keys_of_their_own(tmp_path: Path) -> None:
    """A JSON array on one line, and a cell that is split: the keys of refused rows differ."""
    found = rows(tmp_path, f'["{A}", 1, 2]\n', "list.json")
    assert [row.place.rpartition("list.json ")[2] for row in found] == [
        "line 1", "line 1, item 2", "line 1, item 3"
    ]  # fmt: skip
    found += rows(tmp_path, f"url\n{A}|{B}\n", split="|")
    assert len({row.name for row in found}) == len(found) == 5
