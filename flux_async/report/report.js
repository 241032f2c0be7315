"use strict";
// The list of images: filters, search, order, before and after. Rows come from #data; nothing is requested from
// another host without a click. Text is set as text: no row becomes markup.

const {rows, steps} = JSON.parse(document.getElementById("data").textContent);
const GAP = 16, NARROWEST = 300, ROWS_IN_CHUNK = 8, FEW = 2;
const SAFE_LINK = /^(https?:\/\/|file:\/\/\/|(?![a-z][a-z0-9+.-]*:|\/\/))/i;
const NAMES = {
  succeeded: ["Succeeded", "good"], failed: ["Failed", "bad"], in_doubt: ["In doubt", "bad"], refused: ["Refused", "bad"],
  pending: ["Pending", "work"], clean: ["Text gone", "good"], no_text: ["No text", "good"], text_left: ["Text left", "bad"],
  damaged: ["Damaged", "bad"], cropped: ["Cropped", "bad"], unsure: ["Unsure", "work"],
};
const CHARGES = {yes: "paid", no: "not charged", maybe: "perhaps paid"};
const $ = id => document.getElementById(id);
const list = $("list"), detail = $("detail"), search = $("search"), sort = $("sort"), after = $("after");
const state = {filter: "all", words: "", order: "number", after: "preserved", outline: false};
const asked = new Set();  // pictures at other hosts that were asked for with a click
let shown = [], chunks = [], columns = 1, opened = -1;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

const seconds = value => value.toLocaleString("en", {maximumFractionDigits: 1}) + " s";

const link = (href, text) => SAFE_LINK.test(href)
  ? make("a", {href, target: "_blank", rel: "noopener noreferrer"}, text) : text;

// --- one image before and after ------------------------------------------------------------------------------

// A file of this machine, or a picture at another host that was asked for.
function source(row, role) {
  if (row[role]) return row[role];
  const url = {original: row.original_url, vendor: row.result_url}[role];
  return url && asked.has(row.number + role) ? {file: url} : null;
}

function result(row) {
  const roles = state.after === "vendor" ? ["vendor", "preserved"] : ["preserved", "vendor"];
  return source(row, roles[0]) ?? source(row, roles[1]);
}

function image(picture, side, alt, full) {
  const img = make("img", {className: side, alt, decoding: "async", loading: full ? "eager" : "lazy", referrerPolicy: "no-referrer"});
  img.onerror = () => {
    if (!full && picture.thumbnail && img.dataset.tried === undefined) {
      img.dataset.tried = "";
      img.src = picture.file;
    } else img.replaceWith(make("p", {className: "nothing"}, "The image cannot be shown: " + decode(picture.file)));
  };
  img.src = full ? picture.file : picture.thumbnail ?? picture.file;
  return img;
}

function host(url) {
  try { return new URL(url).host; } catch { return url; }  // Python accepts addresses that a browser does not
}

function decode(href) {
  try { return decodeURI(href); } catch { return href; }
}

function view(row, full, redraw) {
  const before = source(row, "original"), changed = result(row);
  const box = make("div", {className: "view"});
  if (before || changed) box.append(frame(row, before, changed, full));
  else box.append(make("p", {className: "nothing"}, row.error ?? row.stage ?? row.stored_as ?? NAMES[row.kind][0]));
  if (before && changed)  // beside a narrow image in the list, and on an opened one
    (full ? box.firstChild : box).append(make("span", {className: "tag left"}, "before"), make("span", {className: "tag right"}, "after"));
  const wanted = [!before && row.original_url && ["original", row.original_url], !changed && row.result_url && ["vendor", row.result_url]];
  const [role, url] = wanted.find(Boolean) || [];
  if (role) {
    const words = (role === "original" ? "Load the original from " : "Load the result from ") + host(url);
    const load = () => { asked.add(row.number + role); redraw(); };
    box.append(make("button", {type: "button", className: "ask", onclick: load}, words));
  }
  return box;
}

function frame(row, before, changed, full) {
  const box = make("div", {className: before && changed ? "frame" : "frame alone"});
  const images = [changed && image(changed, "after", "after: " + row.title, full), before && image(before, "before", "before: " + row.title, full)];
  box.append(...images.filter(Boolean));
  const leading = images[1] || images[0];  // the result is stretched over the original, unless it was cut
  for (const img of images.filter(Boolean)) img.onload = () => fit(box, leading, images[0]);
  if (row.hole) box.append(outline(row.hole));
  if (before && changed) {
    const slider = make("input", {type: "range", min: 0, max: 100, value: 50, ariaLabel: "Before and after: " + row.title});
    slider.oninput = () => box.style.setProperty("--at", slider.value + "%");
    box.append(make("span", {className: "line"}), slider);
  }
  return box;
}

function fit(box, leading, changed) {
  const ratio = img => img.naturalWidth / img.naturalHeight;
  if (leading.naturalWidth) {
    box.style.setProperty("--ratio", ratio(leading));
    box.style.setProperty("--natural", leading.naturalWidth + "px");
  }
  if (changed?.naturalWidth && leading.naturalWidth)
    changed.classList.toggle("odd", Math.abs(ratio(changed) / ratio(leading) - 1) > .06);
}

function outline(hole) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 1000 1000");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const corners of hole) {
    const shape = document.createElementNS(svg.namespaceURI, "polygon");
    shape.setAttribute("points", corners.join(" "));
    svg.append(shape);
  }
  return svg;
}

// --- the list ------------------------------------------------------------------------------------------------

function badge(row) {
  const [words, tone] = NAMES[row.verdict] ?? NAMES[row.kind];
  return make("span", {className: "badge " + tone}, words);
}

function remark(row) {
  if (row.text_left) return Math.round(100 * row.text_left) + " % of the text" + (row.words_left ? ": " + row.words_left.join(" ") : "");
  if (row.error) return row.error_type ?? row.error;
  if (row.reason ?? row.not_preserved) return row.reason ?? row.not_preserved;
  return row.generation_s === undefined ? row.stage ?? "" : seconds(row.generation_s);
}

function card(index) {
  const row = shown[index], article = make("article");
  const draw = () => article.replaceChildren(
    view(row, false, draw),
    make("div", {className: "words"},
      make("h3", {}, make("button", {type: "button", title: row.image, onclick: () => open(index)}, row.title)),
      make("p", {}, badge(row), make("span", {title: row.error ?? remark(row)}, remark(row)))),
  );
  draw();
  return article;
}

// Cards exist only near what is on the screen; elsewhere a chunk is an empty space of their height.
function fill(chunk) {
  if (chunk.childElementCount) return;
  const end = Math.min(chunk.first + columns * ROWS_IN_CHUNK, shown.length);
  for (let index = chunk.first; index < end; index++) chunk.append(card(index));
}

const nearby = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries)
    if (isIntersecting) fill(target);
    else if (!target.contains(document.activeElement)) target.replaceChildren();
}, {rootMargin: "1200px 0px"});

function layout() {
  nearby.disconnect();
  columns = Math.max(1, Math.floor((list.clientWidth + GAP) / (NARROWEST + GAP)));
  list.style.setProperty("--columns", columns);
  const size = columns * ROWS_IN_CHUNK;
  chunks = [];
  for (let first = 0; first < shown.length; first += size) chunks.push(Object.assign(make("div", {className: "chunk"}), {first}));
  list.replaceChildren(...chunks);
  if (!chunks.length) return;
  fill(chunks[0]);
  const height = chunks[0].firstElementChild.offsetHeight + GAP;
  for (const chunk of chunks) {
    const lines = Math.ceil(Math.min(size, shown.length - chunk.first) / columns);
    chunk.style.minHeight = lines * height - GAP + "px";
    nearby.observe(chunk);
  }
}

const haystack = row => [row.title, row.image, row.key, row.stored_as, row.task_id, row.error_type, row.error, row.model, row.verdict,
  row.reason, row.not_preserved, ...(row.words_left ?? [])].join("\n").toLowerCase();

function compare(name) {
  const down = name.startsWith("-"), field = down ? name.slice(1) : name;
  return (one, two) => {
    const a = one[field], b = two[field];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined) || one.number - two.number;
    const order = typeof a === "string" ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
    return (down ? -order : order) || one.number - two.number;
  };
}

function update() {
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  shown = rows.filter(row => row.filters.includes(state.filter)
    && words.every(word => (row.haystack ??= haystack(row)).includes(word)));
  if (state.order !== "number") shown.sort(compare(state.order));
  for (const button of document.querySelectorAll("[data-filter]"))
    button.setAttribute("aria-pressed", String(button.dataset.filter === state.filter));
  const pressed = document.querySelector("[data-filter][aria-pressed=true]"), row = pressed.parentElement;
  row.scrollLeft = pressed.offsetLeft - row.offsetLeft - GAP;  // on a phone they are one line
  $("found").textContent = shown.length === rows.length ? "" : shown.length.toLocaleString("en") + " of " + rows.length.toLocaleString("en") + " images";
  showStep();
  layout();
  remember();
}

function showStep() {
  const step = steps[state.filter];
  $("step").hidden = !step;
  if (!step) return;
  const all = rows.filter(row => row.filters.includes(state.filter)).length;
  const more = step.command && all !== shown.length ? " It is about all " + all.toLocaleString("en") + " images of the filter, not only those found." : "";
  $("step").querySelector("p").textContent = step.words + more;
  $("step").querySelector("div").hidden = !step.command;
  const words = (step.command ?? "").split(/(?<= )/);  // a line ends between words, not after a hyphen
  $("step").querySelector("code").replaceChildren(...words.map(word => make("span", {}, word)));
}

// --- one image in detail -------------------------------------------------------------------------------------

function open(index) {
  opened = index;
  const row = shown[index];
  $("detail-title").textContent = row.title;
  const draw = () => $("detail-view").replaceChildren(view(row, true, draw));
  draw();
  $("facts").replaceChildren(...facts(row).filter(([, value]) => value !== undefined && value !== null && value !== "")
    .map(([name, value, kind]) => make("div", {className: kind ?? ""}, make("dt", {}, name), make("dd", {}, value))));
  if (!detail.open) detail.showModal();
  $("detail-view").querySelector("input")?.focus();
}

function facts(row) {
  const time = at => at === undefined ? null : new Date(1000 * at).toLocaleString();
  const share = value => value === undefined ? null : (100 * value).toFixed(1) + " %";
  const file = picture => picture && link(picture.file, decode(picture.file));
  return [
    ["Status", NAMES[row.kind][0] + (row.stage ? ": " + row.stage : "")],
    ["Check", row.verdict && NAMES[row.verdict]?.[0] + (row.reason ? ": " + row.reason : "")],
    ["Text left", share(row.text_left)],
    ["Words left", row.words_left?.join(" ")],
    ["Changed elsewhere", share(row.changed_elsewhere)],
    ["Likeness of the rest", row.background_kept?.toFixed(3)],
    ["Vendor's pixels kept, because", row.not_preserved, "wide"],
    ["Its record shows another request", row.is_unrecognised && "compare the result with the image", "wide bad"],
    ["Error", row.error && (row.error_type ? row.error_type + ": " : "") + row.error, "wide bad"],
    ["Charge", CHARGES[row.charge]],
    ["Credits", row.credits],
    ["Credits saved", row.saved_credits],
    ["Submits", row.attempts],
    ["Model", row.model],
    ["Submitted", time(row.submitted_at)],
    ["Settled", time(row.finished_at)],
    ["Generation", row.generation_s === undefined ? null : seconds(row.generation_s)],
    ["Task", row.task_id],
    ["Key", row.key],
    ["Given as", row.original_url ? link(row.original_url, row.image) : row.image, "wide"],
    ["Original", file(row.original), "wide"],
    ["Result with the original's pixels", file(row.preserved), "wide"],
    [row.preserved ? "Result as the vendor made it" : "Result", file(row.vendor), "wide"],
    ["Result stored as", row.stored_as, "wide"],
    ["Result at the vendor", row.result_url && link(row.result_url, row.result_url), "wide"],
  ].map(([name, value, kind]) => [name, value === false ? null : value, kind]);
}

function step(by) {
  if (detail.open) {
    if (shown[opened + by]) open(opened + by);
    return;
  }
  const here = document.activeElement?.closest("article");
  focusCard(here ? here.parentElement.first + [...here.parentElement.children].indexOf(here) + by : 0);
}

function focusCard(index) {
  if (!shown[index]) return;
  const chunk = chunks[Math.floor(index / (columns * ROWS_IN_CHUNK))];
  fill(chunk);
  const article = chunk.children[index - chunk.first];
  article.querySelector("h3 button").focus({preventScroll: true});
  article.scrollIntoView({block: "nearest"});
}

// --- controls ------------------------------------------------------------------------------------------------

function choose(filter) {
  state.filter = filter;
  update();
}

function toggleOutline() {
  if (!$("outline")) return;
  state.outline = document.body.classList.toggle("outlined");
  $("outline").setAttribute("aria-pressed", String(state.outline));
}

function toggleResult() {
  if (!after) return;
  after.value = state.after = state.after === "vendor" ? "preserved" : "vendor";
  layout();
  if (detail.open) open(opened);
}

function toggleZoom() {
  $("zoom").setAttribute("aria-pressed", String(detail.classList.toggle("full")));
}

async function copy() {
  const code = $("step").querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {  // a browser that has no clipboard for pages from disk
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  $("copy").textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
}

const filters = [...document.querySelectorAll("[data-filter]")];
for (const button of filters) button.onclick = () => choose(button.dataset.filter);
for (const button of document.querySelectorAll("[data-search]")) button.onclick = () => {
  search.value = state.words = button.dataset.search;
  choose("all");
};
for (const button of document.querySelectorAll("[data-close]")) button.onclick = () => button.closest("dialog").close();
for (const button of document.querySelectorAll("[data-step]")) button.onclick = () => step(Number(button.dataset.step));
search.oninput = () => { state.words = search.value; update(); };
sort.onchange = () => { state.order = sort.value; update(); };
if (after) after.onchange = () => { state.after = after.value; layout(); };
if ($("outline")) $("outline").onclick = toggleOutline;
$("keys").onclick = () => $("help").showModal();
$("zoom").onclick = toggleZoom;
$("copy").onclick = copy;
detail.addEventListener("close", () => { $("detail-view").replaceChildren(); focusCard(opened); });
for (const dialog of document.querySelectorAll("dialog"))
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });

const keys = {
  "j": () => step(1), "k": () => step(-1), "h": toggleOutline, "p": toggleResult,
  "z": () => { if (detail.open) toggleZoom(); },
  "/": () => { if (!detail.open) search.focus(); }, "?": () => { if (!detail.open && !$("help").open) $("help").showModal(); },
};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target === search;
  if (typing && event.key === "Escape") {
    search.value = state.words = "";
    update();
    search.blur();
  }
  if (typing || event.target.localName === "select") return;
  const number = !detail.open && /^[1-9]$/.test(event.key) ? filters[event.key - 1] : null;
  if (number) number.click();
  else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
});

let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; layout(); } });

// --- what outlives a reload ----------------------------------------------------------------------------------

function remember() {
  const kept = {filter: state.filter, words: state.words, order: state.order};
  const hash = new URLSearchParams(Object.entries(kept).filter(([name, value]) => value && value !== {filter: "all", order: "number"}[name]));
  try { history.replaceState(null, "", "#" + hash); } catch { /* some browsers refuse it for pages from disk */ }
}

function recall() {
  const hash = new URLSearchParams(location.hash.slice(1));
  if (filters.some(button => button.dataset.filter === hash.get("filter"))) state.filter = hash.get("filter");
  search.value = state.words = hash.get("words") ?? "";
  if ([...sort.options].some(option => option.value === hash.get("order"))) sort.value = state.order = hash.get("order");
}

function age() {
  const written = new Date(1000 * document.body.dataset.written), seconds = (Date.now() - written) / 1000;
  const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"]].find(([size]) => seconds >= FEW * size) ?? [1, "second"];
  const ago = new Intl.RelativeTimeFormat("en").format(-Math.max(0, Math.floor(seconds / size)), unit);
  document.querySelector("[data-age]").textContent = "Written " + ago + ", " + written.toLocaleString() + ".";
  const reload = Number(document.body.dataset.reload);
  const busy = document.hidden || document.querySelector("dialog[open]") || document.activeElement === search;
  if (reload && performance.now() > 1000 * reload && !busy) location.reload();
}

recall();
update();
age();
setInterval(age, 1000);
